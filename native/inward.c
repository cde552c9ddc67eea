/* Theory of operation: from the peers to the TUN device
 *
 * The thread waits in recvmmsg() for one message and takes, without waiting, what else has come. With UDP_GRO a message
 * is many datagrams of one size, the last perhaps shorter. Each datagram is asked the twin's two questions: is its
 * sender a peer, and does its inner source belong to that peer? Then neighbours of one flow are joined to a
 * super-packet (see offload.c), which the device takes with one writev(), gathered from where its parts were received.
 *
 *     socket -> buffers: [packet][packet]... of one sender -> joins: slices of the buffers, by flow -> writev()
 *
 * Packets of one flow stay in order: a packet that its flow's join does not take makes that join be written first, one
 * that belongs to no flow makes all be. All is written before the thread waits again.
 *
 * ECN: congestion that the outer packet met is handed on to the inner one (RFC 6040 section 4.2).
 */

#include "tunnel.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "offload.h"

#define BUFFER_BYTES 65536
#define BUFFER_STRIDE_BYTES (BUFFER_BYTES + 17 * 64) /* so that buffers do not compete for the same cache lines */
#define MESSAGES_MAX 64
#define MESSAGES_WHEN_BIG 4   /* as many as still fit into a cache of the second level together */
#define BIG_BYTES 16384
#define JOINS_MAX 16

/* A join and whose it is. */
struct owned_join {
    struct peer *peer;
    struct join join;
};

static uint8_t buffers[MESSAGES_MAX][BUFFER_STRIDE_BYTES] __attribute__((aligned(64)));
static _Alignas(struct cmsghdr) uint8_t controls[MESSAGES_MAX][2 * CMSG_SPACE(sizeof(int))];
static union endpoint senders[MESSAGES_MAX];
static struct iovec places[MESSAGES_MAX];
static struct mmsghdr messages[MESSAGES_MAX];
static struct owned_join joins[JOINS_MAX];
static unsigned joins_count;
static int device_errno; /* why the device is gone */
static struct tunnel *tunnel;
static struct table *table;

static void tally(enum counter counter, uint64_t more)
{
    count(&tunnel->inward.counters[counter], more);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* write_packets() - hand a packet or super-packet to the kernel
 * @peer:    where it comes from
 * @parts:   of which the first is the virtio header
 * @number:  of packets
 * @bytes:   of all packets
 *
 * Return: 0, or why the kernel refused it
 */
static int write_packets(struct peer *peer, const struct iovec *parts, unsigned parts_count, unsigned number,
                         size_t bytes)
{
    unsigned skipped = tunnel->has_virtio_header ? 0 : 1;

    tally(CALLS_WRITE, 1);
    if (writev(tunnel->device, parts + skipped, (int)(parts_count - skipped)) < 0)
        return errno;
    tally(PACKETS_FROM_PEERS, number);
    tally(BYTES_FROM_PEERS, bytes);
    count(&peer->books.packets_from, number);
    count(&peer->books.bytes_from, bytes);
    return 0;
}

/* note_refusal() - count what the kernel refused */
static void note_refusal(struct peer *peer, int error)
{
    if (!is_device_trouble(error))
        device_errno = error;
    tally(TUN_FAILED, 1);
    count(&peer->books.tun_failed, 1);
}

static void write_single(struct peer *peer, const uint8_t *packet, size_t bytes)
{
    virtio_header nothing_special = {0};
    struct iovec parts[2] = {{&nothing_special, sizeof nothing_special}, {(void *)packet, bytes}};
    int error = write_packets(peer, parts, 2, 1, bytes);

    if (error)
        note_refusal(peer, error);
}

/* write_join() - write what was joined; a super-packet that the kernel refuses goes packet by packet */
static void write_join(struct owned_join *owned)
{
    struct join *join = &owned->join;
    unsigned parts_count = join_finish(join);
    size_t bytes = 0;

    for (unsigned i = 0; i < join->count; i++)
        bytes += join->packets[i].iov_len;
    int error = write_packets(owned->peer, join->slices, parts_count, join->count, bytes);
    if (error && join->count == 1)
        note_refusal(owned->peer, error);
    for (unsigned i = 0; error && join->count > 1 && i < join->count; i++)
        write_single(owned->peer, join->packets[i].iov_base, join->packets[i].iov_len);
}

static void flush(void)
{
    for (unsigned i = 0; i < joins_count; i++)
        write_join(&joins[i]);
    joins_count = 0;
}

/* take_join() - write a join now and make room for another */
static void take_join(unsigned index)
{
    write_join(&joins[index]);
    if (index != --joins_count)
        joins[index] = joins[joins_count];
}

/* put_packet() - write a packet, sooner or later */
static void put_packet(struct peer *peer, const uint8_t *packet, size_t bytes)
{
    struct segment segment;
    unsigned i = 0;

    if (!tunnel->has_virtio_header || !parse_segment(packet, bytes, &segment) ||
        (segment.protocol == IPPROTO_UDP && !tunnel->has_udp_offload)) {
        flush();
        write_single(peer, packet, bytes);
        return;
    }
    while (i < joins_count && !join_is_same_flow(&joins[i].join, &segment))
        i++;
    if (i < joins_count && joins[i].peer == peer && join_add(&joins[i].join, &segment)) {
        if (joins[i].join.is_closed)
            take_join(i);
        return;
    }
    if (i < joins_count)
        take_join(i);
    else if (joins_count == JOINS_MAX)
        flush();
    joins[joins_count].peer = peer;
    join_begin(&joins[joins_count].join, &segment);
    if (joins[joins_count++].join.is_closed)
        take_join(joins_count - 1);
}

/* ---- letting in ---------------------------------------------------------------------------------------------------- */

/* owns_source() - see whether an answer to this source would go to that peer, or is that peer itself */
static bool owns_source(struct peer *peer, const struct addresses *addresses)
{
    const uint8_t *own;

    if (table_owner(table, addresses->source, addresses->bytes) == peer)
        return true;
    return endpoint_address(&peer->endpoint, &own) == addresses->bytes &&
           memcmp(own, addresses->source, addresses->bytes) == 0;
}

/* let_in() - judge one datagram and hand on its packet */
static void let_in(struct peer *peer, uint8_t *packet, size_t bytes, uint8_t traffic_class)
{
    struct addresses addresses;

    if (!parse_addresses(packet, bytes, &addresses)) {
        tally(MALFORMED, 1);
        count(&peer->books.malformed, 1);
    } else if (!owns_source(peer, &addresses)) {
        tally(BAD_SOURCE, 1);
        count(&peer->books.bad_source, 1);
    } else if (!mark_congestion(packet, traffic_class)) {
        tally(CONGESTED, 1);
        count(&peer->books.congested, 1);
    } else {
        put_packet(peer, packet, bytes);
    }
}

/* take_message() - let in the datagrams of one message */
static void take_message(unsigned index)
{
    struct msghdr *message = &messages[index].msg_hdr;
    size_t bytes = messages[index].msg_len, size = bytes;
    uint8_t traffic_class = 0;

    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
        int value = 0;

        if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_TOS) {
            traffic_class = *CMSG_DATA(each); /* one byte, ip(7) */
            continue;
        }
        memcpy(&value, CMSG_DATA(each), sizeof value);
        if (each->cmsg_level == IPPROTO_UDP && each->cmsg_type == UDP_GRO && value > 0)
            size = (size_t)value;
        if (each->cmsg_level == IPPROTO_IPV6 && each->cmsg_type == IPV6_TCLASS)
            traffic_class = (uint8_t)value;
    }
    struct peer *peer = table_sender(table, &senders[index]);
    size_t done = 0;
    do { /* an empty datagram is one, too */
        size_t part = bytes - done < size ? bytes - done : size;

        if (peer)
            let_in(peer, buffers[index] + done, part, traffic_class);
        else
            tally(UNKNOWN_PEER, 1);
        done += part;
    } while (done < bytes);
}

/* prepare() - make a message ready to be received into
 *
 * Done anew only for those that were: making 64 of them ready costs as much as a system call.
 */
static void prepare(unsigned index)
{
    places[index] = (struct iovec){buffers[index], BUFFER_BYTES};
    messages[index].msg_hdr = (struct msghdr){
        .msg_name = &senders[index],
        .msg_namelen = sizeof senders[index],
        .msg_iov = &places[index],
        .msg_iovlen = 1,
        .msg_control = controls[index],
        .msg_controllen = sizeof controls[index],
    };
}

/* run_inward() - carry packets from the peers to the device until told to end, or until the device is gone */
void *run_inward(void *of)
{
    unsigned most = MESSAGES_WHEN_BIG;

    tunnel = of;
    for (unsigned i = 0; i < MESSAGES_MAX; i++)
        prepare(i);
    while (!tunnel->is_ending && !device_errno) {
        int received = recvmmsg(tunnel->underlay, messages, most, MSG_WAITFORONE, NULL);

        tally(CALLS_RECEIVE, 1);
        if (received <= 0) /* interrupted, or a belated answer to an earlier send; reading has cleared it */
            continue;
        table = hold_table(tunnel, &tunnel->inward);
        for (int i = 0; i < received; i++)
            take_message((unsigned)i);
        flush();
        release_table(&tunnel->inward);
        most = messages[received - 1].msg_len > BIG_BYTES ? MESSAGES_WHEN_BIG : MESSAGES_MAX;
        for (int i = 0; i < received; i++)
            prepare((unsigned)i);
    }
    end_direction(tunnel, &tunnel->inward, device_errno);
    return NULL;
}
