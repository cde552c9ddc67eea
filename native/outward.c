/* Theory of operation: from the TUN device to the peers
 *
 * The thread waits in one read of the device. Then it takes what else is there without waiting, and sends all of it:
 * under load that is many packets with few system calls, and one alone leaves at once. As long as each packet is found
 * alone, only every eighth time is looked for more: to find nothing takes a system call, too.
 *
 *     device -> arena: [virtio header | packet or super-packet] ... -> datagrams: slices of the arena, with headers
 *            -> bursts: datagrams of one size to one peer, of which only the last may be shorter -> sendmmsg()
 *
 * A super-packet is split while bursts are filled; its payload stays where it was read. A burst of more than one
 * datagram is one message with UDP_SEGMENT, which passes the stack once. When the kernel refuses a burst, its
 * datagrams are sent one by one, and each meets its own fate; EIO says that the way out cannot segment (no checksum
 * offload on old kernels), and then bursts are not tried for a while. Datagrams never overtake each other.
 *
 * The socket is waited for when its buffer is full. Then packets queue up in front of the device, which TCP notices.
 *
 * DSCP and ECN of the inner packet are copied to the outer one (RFC 2983 section 3, RFC 6040 section 4.1).
 */

#include "tunnel.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "offload.h"

#define ARENA_BYTES (192 * 1024) /* two super-packets at the least; all of it fits into a cache of the second level */
#define READ_MAX_BYTES ((size_t)PACKET_MAX_BYTES + sizeof(virtio_header))
#define DATAGRAMS_MAX 512
#define BURSTS_MAX 64
#define READS_MAX 128        /* before what was read is sent, were it ever so little */
#define LONELY_READS 8       /* without looking for more, when there was none the last time */
#define PAUSE_BURSTS 4096    /* not tried after EIO, before one is tried again */
#define ERRORS_A_SECOND 1000 /* of ICMP, RFC 4443 section 2.4 (f) asks for a limit; they come in heaps */
#define ERRORS_AT_ONCE 100

struct datagram {
    unsigned first_slice, slices_count;
    size_t bytes;
};

struct burst {
    struct peer *peer;
    uint8_t traffic_class;
    bool is_closed; /* its last datagram is shorter */
    unsigned first_datagram, datagrams_count;
    size_t bytes, datagram_bytes;
};

static uint8_t arena[ARENA_BYTES] __attribute__((aligned(64)));
static uint8_t headers[DATAGRAMS_MAX][HEADERS_MAX_BYTES];
static struct iovec slices[2 * DATAGRAMS_MAX];
static struct datagram datagrams[DATAGRAMS_MAX];
static struct burst bursts[BURSTS_MAX];
static struct mmsghdr messages[BURSTS_MAX];
static _Alignas(struct cmsghdr) uint8_t controls[BURSTS_MAX][CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
static unsigned slices_count, datagrams_count, bursts_count, singles_left;
static struct tunnel *tunnel;
static struct table *table;

static void tally(enum counter counter, uint64_t more)
{
    count(&tunnel->outward.counters[counter], more);
}

/* ---- answers to senders ---------------------------------------------------------------------------------------- */

/* may_answer() - a bucket of tokens, so that a flood is not answered by a flood */
static bool may_answer(void)
{
    static int64_t tokens_ns, last_ns;
    const int64_t price_ns = 1000000000 / ERRORS_A_SECOND;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t now_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
    tokens_ns += last_ns ? now_ns - last_ns : ERRORS_AT_ONCE * price_ns;
    last_ns = now_ns;
    if (tokens_ns > ERRORS_AT_ONCE * price_ns)
        tokens_ns = ERRORS_AT_ONCE * price_ns;
    if (tokens_ns < price_ns)
        return false;
    tokens_ns -= price_ns;
    return true;
}

/* answer() - tell a sender by ICMP why its packet was not carried
 * @packet:     the packet, or as much of it as an error quotes
 * @mtu_bytes:  of the path to the peer, for TOO_BIG
 */
static void answer(const uint8_t *packet, size_t bytes, enum complaint what, unsigned mtu_bytes)
{
    uint8_t error[ICMP_ERROR_MAX_BYTES];
    virtio_header nothing_special = {0};

    if (!may_answer())
        return;
    size_t error_bytes = encode_icmp_error(packet, bytes, what, mtu_bytes, error);
    struct iovec parts[2] = {{&nothing_special, sizeof nothing_special}, {error, error_bytes}};
    int skipped = tunnel->has_virtio_header ? 0 : 1;
    if (error_bytes && writev(tunnel->device, parts + skipped, 2 - skipped) < 0)
        tally(TUN_FAILED, 1);
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

/* fill_message() - say to the kernel where some datagrams of a burst go, and how
 * @burst:   which burst
 * @first:   of its datagrams
 * @number:  how many of them
 */
static void fill_message(struct msghdr *message, const struct burst *burst, unsigned first, unsigned number,
                         uint8_t *control)
{
    const struct datagram *from = &datagrams[first], *last = &datagrams[first + number - 1];
    bool is_ipv6 = burst->peer->endpoint.any.sa_family == AF_INET6;
    size_t used = 0;

    *message = (struct msghdr){
        .msg_name = &burst->peer->endpoint,
        .msg_namelen = (socklen_t)endpoint_bytes(&burst->peer->endpoint),
        .msg_iov = &slices[from->first_slice],
        .msg_iovlen = last->first_slice + last->slices_count - from->first_slice,
    };
    if (number > 1) {
        struct cmsghdr *header = (struct cmsghdr *)control;
        uint16_t size = (uint16_t)burst->datagram_bytes;

        *header = (struct cmsghdr){CMSG_LEN(sizeof size), IPPROTO_UDP, UDP_SEGMENT};
        memcpy(CMSG_DATA(header), &size, sizeof size);
        used = CMSG_SPACE(sizeof size);
    }
    if (burst->traffic_class) {
        struct cmsghdr *header = (struct cmsghdr *)(control + used);
        int class = burst->traffic_class;

        *header = (struct cmsghdr){CMSG_LEN(sizeof class), is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP,
                                   is_ipv6 ? IPV6_TCLASS : IP_TOS};
        memcpy(CMSG_DATA(header), &class, sizeof class);
        used += CMSG_SPACE(sizeof class);
    }
    if (used) {
        message->msg_control = control;
        message->msg_controllen = used;
    }
}

static void note_sent(struct burst *burst, unsigned number, size_t bytes)
{
    tally(PACKETS_TO_PEERS, number);
    tally(BYTES_TO_PEERS, bytes);
    count(&burst->peer->books.packets_to, number);
    count(&burst->peer->books.bytes_to, bytes);
}

/* note_too_big() - count a packet that the path does not carry, and say so to its sender */
static void note_too_big(struct burst *burst, const struct datagram *datagram)
{
    uint8_t quoted[ICMP_ERROR_MAX_BYTES]; /* an error quotes less */
    size_t bytes = 0;
    int mtu_bytes = path_mtu(tunnel, &burst->peer->endpoint);

    tally(TOO_BIG_FOR_PATH, 1);
    count(&burst->peer->books.too_big, 1);
    for (unsigned i = 0; i < datagram->slices_count && bytes < sizeof quoted; i++) {
        const struct iovec *slice = &slices[datagram->first_slice + i];
        size_t part = slice->iov_len < sizeof quoted - bytes ? slice->iov_len : sizeof quoted - bytes;

        memcpy(quoted + bytes, slice->iov_base, part);
        bytes += part;
    }
    if (mtu_bytes > 0)
        answer(quoted, bytes, TOO_BIG, (unsigned)mtu_bytes);
}

/* send_message() - send one datagram by the cheapest call; Return: -1 with errno if the kernel refused it
 *
 * sendto() has no lists to be copied into the kernel: with read() in place of preadv2(), 3 % less for a round trip.
 */
static ssize_t send_message(const struct msghdr *message)
{
    tally(CALLS_SEND, 1);
    if (message->msg_controllen || message->msg_iovlen > 1)
        return sendmsg(tunnel->underlay, message, 0);
    return sendto(tunnel->underlay, message->msg_iov->iov_base, message->msg_iov->iov_len, 0, message->msg_name,
                  message->msg_namelen);
}

/* send_singly() - send the datagrams of a burst by themselves; what the kernel has against one costs that one only */
static void send_singly(struct burst *burst)
{
    static _Alignas(struct cmsghdr) uint8_t control[sizeof controls[0]];
    struct msghdr message;

    for (unsigned i = 0; i < burst->datagrams_count; i++) {
        const struct datagram *datagram = &datagrams[burst->first_datagram + i];
        ssize_t sent;

        fill_message(&message, burst, burst->first_datagram + i, 1, control);
        do {
            sent = send_message(&message);
        } while (sent < 0 && errno == EINTR && !tunnel->is_ending);
        if (sent >= 0) {
            note_sent(burst, 1, datagram->bytes);
        } else if (errno == EMSGSIZE) {
            note_too_big(burst, datagram);
        } else {
            tally(SEND_FAILED, 1);
            count(&burst->peer->books.send_failed, 1);
        }
    }
}

/* flush() - send all bursts and forget them */
static void flush(void)
{
    unsigned done = 0;

    if (bursts_count == 1 && bursts[0].datagrams_count == 1) {
        send_singly(&bursts[0]); /* the usual case at rest, and the cheapest call for it */
        done = bursts_count;
    }
    for (unsigned i = done; i < bursts_count; i++)
        fill_message(&messages[i].msg_hdr, &bursts[i], bursts[i].first_datagram, bursts[i].datagrams_count,
                     controls[i]);
    while (done < bursts_count) {
        tally(CALLS_SEND, 1);
        int sent = sendmmsg(tunnel->underlay, messages + done, bursts_count - done, 0);

        for (int i = 0; i < sent; i++, done++)
            note_sent(&bursts[done], bursts[done].datagrams_count, bursts[done].bytes);
        if (sent < 0 && (errno != EINTR || tunnel->is_ending)) {
            if (errno == EIO && bursts[done].datagrams_count > 1)
                singles_left = PAUSE_BURSTS;
            send_singly(&bursts[done++]);
        }
    }
    bursts_count = datagrams_count = slices_count = 0;
}

/* ---- filling bursts ------------------------------------------------------------------------------------------------ */

/* make_room() - flush unless one more datagram can be added */
static void make_room(void)
{
    if (datagrams_count == DATAGRAMS_MAX || bursts_count == BURSTS_MAX)
        flush();
}

/* add_datagram() - add what stands in the latest slices to the burst that it fits, or to a new one
 * @peer:           where it goes
 * @traffic_class:  of the inner packet
 * @number:         of slices
 */
static void add_datagram(struct peer *peer, uint8_t traffic_class, unsigned number, size_t bytes)
{
    struct burst *burst = bursts_count ? &bursts[bursts_count - 1] : NULL;
    bool fits = burst && !burst->is_closed && burst->peer == peer && burst->traffic_class == traffic_class &&
                bytes <= burst->datagram_bytes && burst->datagrams_count < DATAGRAMS_A_SEND &&
                burst->bytes + bytes <= BURST_MAX_BYTES && tunnel->has_segmentation;

    if (fits && singles_left) {
        singles_left--;
        fits = false;
    }
    if (!fits) {
        burst = &bursts[bursts_count++];
        *burst = (struct burst){
            .peer = peer,
            .traffic_class = traffic_class,
            .first_datagram = datagrams_count,
            .datagram_bytes = bytes,
        };
    }
    datagrams[datagrams_count++] = (struct datagram){slices_count - number, number, bytes};
    burst->datagrams_count++;
    burst->bytes += bytes;
    burst->is_closed = bytes < burst->datagram_bytes;
}

/* is_group() - see whether a destination is no single host: multicast, or broadcast */
static bool is_group(const struct addresses *addresses)
{
    return addresses->destination[0] >= (addresses->bytes == 4 ? 224 : 255);
}

/* take_packet() - let one packet or super-packet go the way that its destination says */
static void take_packet(const virtio_header *virtio, uint8_t *packet, size_t bytes)
{
    struct addresses addresses;
    struct split split;
    struct iovec payload;

    if (!parse_addresses(packet, bytes, &addresses)) {
        tally(MALFORMED, 1);
        return;
    }
    struct peer *peer = table_owner(table, addresses.destination, addresses.bytes);
    uint8_t traffic_class = read_traffic_class(packet);
    enum split_verdict verdict = split_begin(&split, virtio, packet, bytes);
    if (verdict == SPLIT_MALFORMED) {
        tally(MALFORMED, 1);
        return;
    }
    if (!peer) {
        if (!is_group(&addresses)) /* a host speaks to those by itself: multicast listener reports, for one */
            tally(NO_PEER, verdict == SPLIT_WHOLE ? 1 : split_segments(&split));
        answer(packet, bytes, NO_ROUTE, 0);
        return;
    }
    if (verdict == SPLIT_WHOLE) {
        make_room();
        slices[slices_count++] = (struct iovec){packet, bytes};
        add_datagram(peer, traffic_class, 1, bytes);
        return;
    }
    for (make_room(); split_next(&split, headers[datagrams_count], &payload); make_room()) {
        slices[slices_count++] = (struct iovec){headers[datagrams_count], split.headers_bytes};
        slices[slices_count++] = payload;
        add_datagram(peer, traffic_class, 2, split.headers_bytes + payload.iov_len);
    }
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

/* read_packet() - read one packet, with its virtio header where there is one
 * @at:     takes READ_MAX_BYTES
 * @flags:  RWF_NOWAIT, or 0 to wait for a packet
 *
 * Return: bytes, or -1 with errno
 */
static ssize_t read_packet(uint8_t *at, int flags)
{
    struct iovec place = {at, READ_MAX_BYTES};

    tally(CALLS_READ, 1);
    return flags ? preadv2(tunnel->device, &place, 1, -1, flags) : read(tunnel->device, at, READ_MAX_BYTES);
}

/* drain() - send what the device has, beginning with a packet that was read already
 * @bytes:  of that packet, at the start of the arena
 */
static void drain(ssize_t bytes)
{
    static const virtio_header nothing_special;
    static unsigned lonely;
    size_t at = 0, virtio_bytes = tunnel->has_virtio_header ? sizeof(virtio_header) : 0;

    unsigned reads = 0;

    while (bytes >= (ssize_t)virtio_bytes) {
        virtio_header virtio = nothing_special;

        memcpy(&virtio, arena + at, virtio_bytes);
        take_packet(&virtio, arena + at + virtio_bytes, (size_t)bytes - virtio_bytes);
        at += ((size_t)bytes + 63) & ~(size_t)63; /* the next one begins in a cache line of its own */
        if (++reads == READS_MAX || at + READ_MAX_BYTES > sizeof arena || (lonely && lonely++ < LONELY_READS))
            break;
        bytes = read_packet(arena + at, RWF_NOWAIT);
        lonely = reads == 1 && bytes < 0;
    }
    flush();
}

/* run_outward() - carry packets from the device to the peers until told to end, or until the device is gone */
void *run_outward(void *of)
{
    int gone = 0;

    tunnel = of;
    while (!tunnel->is_ending && !gone) {
        ssize_t bytes = read_packet(arena, 0);

        if (bytes >= 0) {
            table = hold_table(tunnel, &tunnel->outward);
            drain(bytes);
            release_table(&tunnel->outward);
        } else if (errno != EINTR && !is_device_trouble(errno)) {
            gone = errno;
        }
    }
    end_direction(tunnel, &tunnel->outward, gone);
    return NULL;
}
