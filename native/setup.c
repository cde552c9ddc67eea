/* Theory of operation
 *
 * The command line is the twin's. A device is attached to and a socket bound before any right is given up; what the
 * kernel can do for us is asked of the kernel, feature by feature, never of its version:
 *
 *   IFF_VNET_HDR, TUN_F_TSO4/6   super-packets of TCP between the device and us; else all is done packet by packet
 *   TUN_F_USO4/6                 the same of UDP (Linux 6.2)
 *   UDP_SEGMENT                  many datagrams with one call (4.18); a way out that cannot do it is found out later
 *   UDP_GRO                      many datagrams from one call (5.0)
 *
 * A successor takes device and socket from the tunnel that runs (pidfd_getfd(), which takes the right to trace it), in
 * place of opening its own. For a moment both carry packets, each packet one of them; then the older finishes what it
 * has in hand and ends. So a new version comes in without a packet lost, or a datagram that finds a closed port.
 *
 * Not changed: addresses, routes, MTUs and namespaces.
 */

#include "setup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "offload.h"

/* As in linux/if_tun.h since 6.2. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* Where a successor finds what it takes over. */
#define DEVICE_FD 10
#define UNDERLAY_FD 11

#define SOCKET_BUFFER_BYTES (7 << 20) /* 100 bursts; capped at net.core.[rw]mem_max without CAP_NET_ADMIN */

/* ---- words --------------------------------------------------------------------------------------------------------- */

/* is_interface_name() - 1 to 15 plain characters; a % would be a template to TUNSETIFF */
static bool is_interface_name(const char *text)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
    size_t length = strlen(text);

    return 1 <= length && length < IFNAMSIZ && strspn(text, plain) == length && strcmp(text, ".") &&
           strcmp(text, "..");
}

/* take_value() - note the value of an option; Return: whether it can be one */
static bool take_value(struct arguments *arguments, const char *option, const char *value, char *error)
{
    char why[ERROR_MAX_BYTES];

    if (!strcmp(option, "--device")) {
        arguments->device = value;
        if (is_interface_name(value))
            return true;
        snprintf(why, sizeof why, "'%.200s' is no interface name; expected 1 to 15 letters such as tun0", value);
    } else if (!strcmp(option, "--listen")) {
        if (parse_endpoint(value, &arguments->listen, why))
            return true;
    } else if (!strcmp(option, "--take-over")) {
        arguments->predecessor = (int)parse_digits(value, 1 << 22); /* PID_MAX_LIMIT of linux/threads.h */
        if (arguments->predecessor > 0)
            return true;
        snprintf(why, sizeof why, "'%.200s' is no process number", value);
    } else if (!strcmp(option, "--peers")) {
        arguments->peers_path = value;
        return true;
    } else {
        struct prefix prefix;
        union endpoint endpoint;

        if (arguments->peers_count == ARGUMENT_PEERS_MAX)
            snprintf(why, sizeof why, "more than %d of them; expected a file (--peers)", ARGUMENT_PEERS_MAX);
        else if (parse_peer(value, '=', &prefix, &endpoint, why)) {
            arguments->peers[arguments->peers_count++] = value;
            return true;
        }
    }
    snprintf(error, ERROR_MAX_BYTES, "argument %s: %.500s", option, why);
    return false;
}

/* parse_arguments() - understand the command line
 * @count:      of words
 * @words:      as of main()
 * @arguments:  set on success; its texts are in the words
 * @error:      takes ERROR_MAX_BYTES, a sentence on failure
 *
 * Return: whether it was understood
 */
bool parse_arguments(int count, char **words, struct arguments *arguments, char *error)
{
    static const char *const with_value[] = {"--device", "--listen", "--peers", "--peer", "--take-over"};

    for (int i = 1; i < count; i++) {
        const char *equals = strchr(words[i], '='), *option = NULL;
        size_t length = equals ? (size_t)(equals - words[i]) : strlen(words[i]);

        if (!strcmp(words[i], "--plain")) {
            arguments->is_plain = true;
            continue;
        }
        if (!strcmp(words[i], "--help") || !strcmp(words[i], "-h")) {
            arguments->wants_help = true;
            return true;
        }
        for (size_t j = 0; j < sizeof with_value / sizeof with_value[0]; j++)
            if (strlen(with_value[j]) == length && !strncmp(words[i], with_value[j], length))
                option = with_value[j];
        if (!option) {
            snprintf(error, ERROR_MAX_BYTES, "unrecognized argument: %.300s", words[i]);
            return false;
        }
        if (!equals && i + 1 == count) {
            snprintf(error, ERROR_MAX_BYTES, "argument %s: expected one value", option);
            return false;
        }
        if (!take_value(arguments, option, equals ? equals + 1 : words[++i], error))
            return false;
    }
    if (arguments->device && arguments->listen.any.sa_family)
        return true;
    snprintf(error, ERROR_MAX_BYTES, "expected at least --device and --listen");
    return false;
}

/* ---- devices ------------------------------------------------------------------------------------------------------- */

/* settle() - put a descriptor where a successor looks for it; Return: the number, -1 with errno */
static int settle(int fd, int number)
{
    return fd < 0 || fd == number ? fd : dup3(fd, number, O_CLOEXEC) < 0 || close(fd) < 0 ? -1 : number;
}

/* agree_on_offloads() - say to the device what we can take, and note what it can
 *
 * What an earlier program asked for stays with the device, so it is said in any case.
 */
static bool agree_on_offloads(struct tunnel *tunnel)
{
    const unsigned long tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN, udp = TUN_F_USO4 | TUN_F_USO6;
    int header_bytes = sizeof(virtio_header);

    if (!tunnel->has_virtio_header)
        return ioctl(tunnel->device, TUNSETOFFLOAD, 0ul) == 0;
    if (ioctl(tunnel->device, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return false;
    tunnel->has_udp_offload = ioctl(tunnel->device, TUNSETOFFLOAD, tcp | udp) == 0;
    return tunnel->has_udp_offload || ioctl(tunnel->device, TUNSETOFFLOAD, tcp) == 0 ||
           ioctl(tunnel->device, TUNSETOFFLOAD, 0ul) == 0;
}

/* take_over() - get device and socket from the tunnel that runs
 * @tunnel:       which says what they should be
 * @predecessor:  its process number
 *
 * Return: false with errno; EADDRNOTAVAIL when it has others than these
 */
bool take_over(struct tunnel *tunnel, int predecessor)
{
    int process = (int)syscall(SYS_pidfd_open, predecessor, 0);
    struct ifreq request = {0};
    union endpoint bound = {0};
    socklen_t size = sizeof bound;

    if (process < 0)
        return false;
    tunnel->device = settle((int)syscall(SYS_pidfd_getfd, process, DEVICE_FD, 0), DEVICE_FD);
    tunnel->underlay = settle((int)syscall(SYS_pidfd_getfd, process, UNDERLAY_FD, 0), UNDERLAY_FD);
    tunnel->predecessor = process;
    if (tunnel->device < 0 || tunnel->underlay < 0 || ioctl(tunnel->device, TUNGETIFF, &request) < 0 ||
        getsockname(tunnel->underlay, &bound.any, &size) < 0)
        return false;
    errno = EADDRNOTAVAIL;
    tunnel->has_virtio_header = request.ifr_flags & IFF_VNET_HDR;
    return !strcmp(request.ifr_name, tunnel->device_name) &&
           !memcmp(&bound, &tunnel->listen, endpoint_bytes(&bound)) && agree_on_offloads(tunnel);
}

/* open_device() - attach to the TUN device; if absent, make it until this program ends
 * @tunnel:  which says the name and whether to be plain; what the device can do is noted in it
 *
 * Return: false with errno
 */
bool open_device(struct tunnel *tunnel)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    unsigned features = 0;

    if (tunnel->device >= 0)
        return true; /* taken over */
    tunnel->device = settle(open("/dev/net/tun", O_RDWR | O_CLOEXEC), DEVICE_FD);
    if (tunnel->device < 0)
        return false;
    if (!tunnel->is_plain && ioctl(tunnel->device, TUNGETFEATURES, &features) == 0)
        tunnel->has_virtio_header = features & IFF_VNET_HDR;
    if (tunnel->has_virtio_header)
        request.ifr_flags |= IFF_VNET_HDR;
    strncpy(request.ifr_name, tunnel->device_name, IFNAMSIZ - 1);
    if (ioctl(tunnel->device, TUNSETIFF, &request) < 0)
        return false;
    return agree_on_offloads(tunnel);
}

static void set(int fd, int level, int option, int value)
{
    setsockopt(fd, level, option, &value, sizeof value); /* what matters is asked for again where it is needed */
}

/* open_asking() - have a socket to ask for path MTUs with; Return: false with errno */
static bool open_asking(struct tunnel *tunnel)
{
    union endpoint own = tunnel->listen;

    own.ipv4.sin_port = 0; /* the same source, should the route depend on it */
    tunnel->asking = socket(own.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return tunnel->asking >= 0 && bind(tunnel->asking, &own.any, (socklen_t)endpoint_bytes(&own)) == 0;
}

/* open_underlay() - bind the socket that never fragments
 * @tunnel:  which says the address and whether to be plain; what the kernel can do is noted in it
 *
 * No SO_REUSEADDR: UDP restarts without, and with it a second tunnel could steal the first one's datagrams.
 *
 * Return: false with errno
 */
bool open_underlay(struct tunnel *tunnel)
{
    bool is_ipv6 = tunnel->listen.any.sa_family == AF_INET6, is_bound = tunnel->underlay >= 0; /* taken over */
    int level = is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, on = 1;
    socklen_t on_bytes = sizeof on;

    if (!is_bound)
        tunnel->underlay = settle(socket(tunnel->listen.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), UNDERLAY_FD);
    int underlay = tunnel->underlay;
    if (underlay < 0)
        return false;
    tunnel->overhead_bytes = (is_ipv6 ? IPV6_HEADER_BYTES : IPV4_HEADER_BYTES) + UDP_HEADER_BYTES;
    if (is_ipv6 && !is_bound)
        set(underlay, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    /* Without fragments: RFC 1191 and 8201. */
    int discovery = is_ipv6 ? IPV6_PMTUDISC_DO : IP_PMTUDISC_DO;
    if (setsockopt(underlay, level, is_ipv6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, &discovery, sizeof discovery) < 0)
        return false;
    set(underlay, level, is_ipv6 ? IPV6_RECVTCLASS : IP_RECVTOS, 1);
    set(underlay, SOL_SOCKET, SO_RCVBUF, SOCKET_BUFFER_BYTES);
    set(underlay, SOL_SOCKET, SO_SNDBUF, SOCKET_BUFFER_BYTES);
    set(underlay, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES);
    set(underlay, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES);
    if (!tunnel->is_plain) {
        tunnel->has_segmentation = getsockopt(underlay, IPPROTO_UDP, UDP_SEGMENT, &on, &on_bytes) == 0;
        set(underlay, IPPROTO_UDP, UDP_GRO, 1);
    }
    if (!is_bound && bind(underlay, &tunnel->listen.any, (socklen_t)endpoint_bytes(&tunnel->listen)) < 0)
        return false;
    return open_asking(tunnel);
}

/* path_mtu() - learn the largest inner packet that the path to a peer is known to carry
 *
 * The kernel tells a path MTU only of a connected socket, so one that is there for nothing else asks. Connecting sends
 * nothing.
 *
 * Return: bytes, 0 if there is no route
 */
int path_mtu(const struct tunnel *tunnel, const union endpoint *peer)
{
    bool is_ipv6 = peer->any.sa_family == AF_INET6;
    int mtu_bytes = 0;
    socklen_t size = sizeof mtu_bytes;

    if (connect(tunnel->asking, &peer->any, (socklen_t)endpoint_bytes(peer)) < 0 ||
        getsockopt(tunnel->asking, is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP, is_ipv6 ? IPV6_MTU : IP_MTU, &mtu_bytes,
                   &size) < 0)
        return 0;
    return (mtu_bytes < PACKET_MAX_BYTES ? mtu_bytes : PACKET_MAX_BYTES) - (int)tunnel->overhead_bytes;
}

/* device_mtu() - learn what the device promises to its senders; Return: bytes, -1 with errno */
int device_mtu(const struct tunnel *tunnel)
{
    struct ifreq request = {0};

    strncpy(request.ifr_name, tunnel->device_name, IFNAMSIZ - 1);
    return ioctl(tunnel->asking, SIOCGIFMTU, &request) < 0 ? -1 : request.ifr_mtu;
}
