/* What the threads of a tunnel share. */

#ifndef MUSLIN_TUNNEL_H
#define MUSLIN_TUNNEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "packet.h"
#include "peers.h"

#define BURST_MAX_BYTES 65507 /* the largest payload of UDP over IPv4: 65,535 less 28 (RFC 768) */
#define DATAGRAMS_A_SEND 64   /* UDP_MAX_SEGMENTS of linux/udp.h before 6.9 */

/* Reasons and amounts that are counted; COUNTER_NAMES of tunnel.c names them, and the twin's documentation explains. */
enum counter {
    PACKETS_TO_PEERS,
    BYTES_TO_PEERS,
    PACKETS_FROM_PEERS,
    BYTES_FROM_PEERS,
    NO_PEER,
    TOO_BIG_FOR_PATH,
    SEND_FAILED,
    UNKNOWN_PEER,
    BAD_SOURCE,
    MALFORMED,
    TUN_FAILED,
    CONGESTED, /* in: the way here was congested, and the packet has no way to say so (RFC 6040) */
    CALLS_READ, /* how many system calls it took: the four say how well packets are batched */
    CALLS_SEND,
    CALLS_RECEIVE,
    CALLS_WRITE,
    COUNTERS
};

/* One of the two directions, each a thread of its own. */
struct direction {
    pthread_t thread;
    _Atomic(struct table *) holds; /* the table that it looks at right now, NULL while it waits for packets */
    _Atomic uint64_t counters[COUNTERS];
    atomic_bool has_ended;
};

/* Set up before the threads start, and then constant but for what is atomic. */
struct tunnel {
    const char *device_name, *peers_path;
    union endpoint listen;
    int device, underlay;
    int predecessor; /* a pidfd of the tunnel that ends once this one is ready, else negative */
    int asking; /* a socket that is only ever connected, to learn path MTUs */
    size_t overhead_bytes;
    bool is_plain;          /* told to use no offload at all */
    bool has_virtio_header; /* before each packet of the device */
    bool has_udp_offload;   /* the device takes, and gives, super-packets of UDP */
    bool has_segmentation;  /* the underlay's socket takes many datagrams in one message */
    pthread_t main;
    _Atomic(struct table *) table;
    atomic_bool is_ending;
    atomic_int device_errno; /* why the device is gone */
    struct direction outward, inward;
};

/* WAKE_SIGNAL interrupts what a thread waits in, and tells the main thread that the device is gone. */
#define WAKE_SIGNAL SIGALRM

void *run_outward(void *tunnel);
void *run_inward(void *tunnel);

struct table *hold_table(struct tunnel *tunnel, struct direction *direction);
void end_direction(struct tunnel *tunnel, struct direction *direction, int device_errno);
int path_mtu(const struct tunnel *tunnel, const union endpoint *peer);
bool is_device_trouble(int error);
bool isolate(void);
bool fence(const char *peers_path, char *error);
bool confine(char *error);

/* count() - add to a counter that only this thread writes */
static inline void count(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more, memory_order_relaxed);
}

/* release_table() - a thread is about to wait and looks at no table until hold_table() */
static inline void release_table(struct direction *direction)
{
    atomic_store_explicit(&direction->holds, NULL, memory_order_release);
}

#endif
