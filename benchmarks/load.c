/* The load of `./run bench tunnel` and of the soak: senders and receivers so small that they are not what is measured.
 *
 *   load sink PORT                     receive TCP streams until the last one ends; then print what came
 *   load stream ADDRESS PORT S STREAMS send for S seconds over so many connections
 *   load echo PORT                     send back each byte of one connection
 *   load rr ADDRESS PORT S             one byte there and back for S seconds, one after the other
 *   load count PORT                    receive datagrams until a second passes without one
 *   load flood ADDRESS PORT S BYTES    send datagrams of this size as fast as one socket can
 *
 * All print one line of JSON; bytes are payload, times are of CLOCK_MONOTONIC. The receivers say `ready` first. IPv4 and
 * IPv6. An error ends the program with its name.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES (128 * 1024) /* as iperf3 has it */
#define STREAMS_MAX 64
#define SAMPLES_MAX (1 << 21)
#define DATAGRAMS 32
#define SILENCE_MS 1000

static uint8_t chunk[CHUNK_BYTES];
static uint32_t samples_ns[SAMPLES_MAX];

static void check(bool is_right, const char *what)
{
    if (is_right)
        return;
    perror(what);
    exit(1);
}

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* open_socket() - bound to a port for a receiver (no address), else connected */
static int open_socket(const char *address, const char *port, int kind)
{
    struct addrinfo hints = {.ai_family = address ? AF_UNSPEC : AF_INET6, .ai_socktype = kind}, *found;
    int on = 1, big = 4 << 20;

    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | (address ? 0 : AI_PASSIVE);
    check(getaddrinfo(address, port, &hints, &found) == 0, "address");
    int fd = socket(found->ai_family, kind, 0);
    check(fd >= 0, "socket");
    if (kind == SOCK_DGRAM && !address)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    if (!address)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    check((address ? connect : bind)(fd, found->ai_addr, found->ai_addrlen) == 0, address ? "connect" : "bind");
    if (kind == SOCK_STREAM) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        check(address || listen(fd, STREAMS_MAX) == 0, "listen");
    }
    freeaddrinfo(found);
    if (!address) {
        printf("ready\n");
        fflush(stdout);
    }
    return fd;
}

static void sink(const char *port)
{
    struct pollfd fds[1 + STREAMS_MAX] = {{.fd = open_socket(NULL, port, SOCK_STREAM), .events = POLLIN}};
    unsigned count = 1, open = 0;
    uint64_t bytes = 0;
    double began = 0, last = 0;

    while (open || count == 1) {
        check(poll(fds, count, -1) >= 0, "poll");
        for (unsigned i = 1; i < count; i++) {
            if (!fds[i].revents)
                continue;
            ssize_t got = recv(fds[i].fd, chunk, sizeof chunk, 0);
            if (got <= 0) {
                fds[i].fd = -1 - fds[i].fd; /* poll() skips what is negative */
                open--;
            } else {
                bytes += (uint64_t)got;
                last = now_s();
            }
        }
        if (fds[0].revents && count <= STREAMS_MAX) {
            fds[count++] = (struct pollfd){.fd = accept(fds[0].fd, NULL, NULL), .events = POLLIN};
            began = began > 0 ? began : now_s();
            open++;
        }
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)bytes, last - began);
}

static void stream(const char *address, const char *port, double seconds, unsigned streams)
{
    struct pollfd fds[STREAMS_MAX];
    uint64_t bytes = 0;

    for (unsigned i = 0; i < streams; i++)
        fds[i] = (struct pollfd){.fd = open_socket(address, port, SOCK_STREAM), .events = POLLOUT};
    double began = now_s();
    while (now_s() - began < seconds) {
        check(streams == 1 || poll(fds, streams, 1000) >= 0, "poll");
        for (unsigned i = 0; i < streams; i++) {
            if (streams > 1 && !fds[i].revents)
                continue;
            ssize_t sent = send(fds[i].fd, chunk, sizeof chunk, streams > 1 ? MSG_DONTWAIT : 0);
            check(sent > 0 || errno == EAGAIN, "send");
            bytes += sent > 0 ? (uint64_t)sent : 0;
        }
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)bytes, now_s() - began);
}

static void echo(const char *port)
{
    int on = 1, listener = open_socket(NULL, port, SOCK_STREAM), fd = accept(listener, NULL, NULL);
    ssize_t got;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while ((got = recv(fd, chunk, sizeof chunk, 0)) > 0)
        check(send(fd, chunk, (size_t)got, 0) == got, "send");
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

static void request_response(const char *address, const char *port, double seconds)
{
    int fd = open_socket(address, port, SOCK_STREAM);
    double began = now_s(), at = began;
    unsigned count = 0;

    while (at - began < seconds && count < SAMPLES_MAX) {
        check(send(fd, chunk, 1, 0) == 1 && recv(fd, chunk, 1, 0) == 1, "exchange");
        double then = now_s();
        samples_ns[count++] = (uint32_t)((then - at) * 1e9);
        at = then;
    }
    qsort(samples_ns, count, sizeof samples_ns[0], compare);
    printf("{\"exchanges\": %u, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", count, at - began,
           samples_ns[count / 2] / 1e3, samples_ns[count / 100 * 99] / 1e3);
}

static void count_datagrams(const char *port)
{
    struct pollfd waiting = {.fd = open_socket(NULL, port, SOCK_DGRAM), .events = POLLIN};
    static uint8_t data[DATAGRAMS][2048];
    struct iovec places[DATAGRAMS];
    struct mmsghdr messages[DATAGRAMS];
    uint64_t packets = 0, bytes = 0;
    double began = 0, last = 0;

    for (int i = 0; i < DATAGRAMS; i++) {
        places[i] = (struct iovec){data[i], sizeof data[i]};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &places[i], .msg_iovlen = 1}};
    }
    while (poll(&waiting, 1, packets ? SILENCE_MS : -1) > 0) {
        int got = recvmmsg(waiting.fd, messages, DATAGRAMS, MSG_DONTWAIT, NULL);
        if (got <= 0)
            continue;
        last = now_s();
        began = packets ? began : last;
        packets += (uint64_t)got;
        for (int i = 0; i < got; i++)
            bytes += messages[i].msg_len;
    }
    printf("{\"packets\": %llu, \"bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets,
           (unsigned long long)bytes, last - began);
}

static void flood(const char *address, const char *port, double seconds, size_t bytes)
{
    int fd = open_socket(address, port, SOCK_DGRAM);
    uint64_t packets = 0;
    double began = now_s();

    while (now_s() - began < seconds)
        for (int i = 0; i < DATAGRAMS; i++)
            packets += send(fd, chunk, bytes, 0) == (ssize_t)bytes; /* refused ones are lost, as on a full wire */
    printf("{\"packets\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets, now_s() - began);
}

int main(int count, char **words)
{
    const char *verb = count > 2 ? words[1] : "";

    if (!strcmp(verb, "sink"))
        sink(words[2]);
    else if (!strcmp(verb, "echo"))
        echo(words[2]);
    else if (!strcmp(verb, "count"))
        count_datagrams(words[2]);
    else if (!strcmp(verb, "stream") && count == 6)
        stream(words[2], words[3], atof(words[4]), (unsigned)atoi(words[5]));
    else if (!strcmp(verb, "rr") && count == 5)
        request_response(words[2], words[3], atof(words[4]));
    else if (!strcmp(verb, "flood") && count == 6)
        flood(words[2], words[3], atof(words[4]), (size_t)atol(words[5]));
    else
        return 2;
    return 0;
}
