/* muslin-tunnel - step four of the talk at wire speed: one TUN device, one UDP socket, and the peers behind it
 *
 * Theory of operation
 *
 * This is the fast twin of src/muslin/tunnel/reference.py, which is the text to read first: what is carried, what is
 * dropped and why, what stands on the wire (one raw IP packet a datagram, flannel's `udp` framing), the command line,
 * and the signals are the same, and one suite of tests holds both to it (tests/contract/test_tunnel.py). Each side of a
 * wire may run either.
 *
 *     outward.c  a thread: device -> offload.c splits super-packets -> bursts of datagrams -> socket
 *     inward.c   a thread: socket -> the sender is a peer, the source is his -> offload.c joins -> device
 *     tunnel.c   the main thread: sets up, reads the peers again, says what was counted
 *     packet.c, offload.c, peers.c   pure; setup.c, isolation.c   before the first packet
 *
 * A thread for each direction because one that waits in the very call that fetches its packets needs no other call:
 * for a single packet that is one to read and one to send, where a loop around epoll needs five. Latency is half of
 * the job. Nothing is ever delayed to make a batch; batches are what came meanwhile.
 *
 * Memory is static: nothing is allocated once the threads run, so that memory does not grow and cannot run out.
 *
 * Peers. There are two tables. The main thread fills the one that is not in use and then swaps a pointer. Before that
 * one is filled again, both threads must have let go of it: each notes which table it looks at, for one batch at most.
 * So packets never wait for peers to be read, however many.
 *
 * Signals. SIGTERM, SIGINT: finish what is in hand, end with status 0. SIGHUP: read the peers again. SIGUSR1: the
 * counters as one line of JSON. SIGUSR2: the same by peer, of those that were heard of. All are waited for by the main
 * thread (sigwaitinfo); the handlers that are installed only show that they are expected (SigCgt of /proc/PID/status).
 *
 * Beyond the twin: DSCP and ECN on the outer packets, a limit to ICMP errors, no rights after set-up (isolation.c).
 * Not handled: encryption and authentication, as there.
 */

#include "tunnel.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "setup.h"

#define LINE_BYTES 4096
#define END_PATIENCE_MS 1000 /* for threads to finish their batch */

static const char *const COUNTER_NAMES[] = {
    "packets_to_peers", "bytes_to_peers", "packets_from_peers", "bytes_from_peers", "no_peer",    "too_big",
    "send_failed",      "unknown_peer",   "bad_source",         "malformed",        "tun_failed", "congested",
    "calls_read",       "calls_send",     "calls_receive",      "calls_write",
};
_Static_assert(sizeof COUNTER_NAMES / sizeof COUNTER_NAMES[0] == COUNTERS, "a name for each counter");

static struct tunnel tunnel;
static struct arguments arguments;
static struct table tables[2];
static pthread_barrier_t have_started;

/* say() - write one line on stderr; a reader that has gone away is no reason to stop carrying packets */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[LINE_BYTES];
    va_list values;

    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length] = '\n';
    if (write(STDERR_FILENO, line, (size_t)length + 1) < 0)
        return;
}

/* ---- between the threads ------------------------------------------------------------------------------------------- */

/* hold_table() - see which table is in use, and keep it until release_table()
 *
 * It is noted first and looked at again then: the main thread swaps first and looks at the notes then, so that one of
 * the two sees the other (both are sequentially consistent).
 */
struct table *hold_table(struct tunnel *of, struct direction *direction)
{
    struct table *seen = of->table;

    for (;;) {
        direction->holds = seen;
        struct table *again = of->table;
        if (again == seen)
            return seen;
        seen = again;
    }
}

/* end_direction() - the last thing that a thread does
 * @device_errno:  why the device is gone, 0 if it is not
 */
void end_direction(struct tunnel *of, struct direction *direction, int device_errno)
{
    release_table(direction);
    if (device_errno)
        of->device_errno = device_errno;
    direction->has_ended = true;
    if (device_errno)
        pthread_kill(of->main, WAKE_SIGNAL);
}

/* is_device_trouble() - see whether an error of the device costs the packet at hand only: it is down, its queue full */
bool is_device_trouble(int error)
{
    return error == EIO || error == EAGAIN || error == EINVAL || error == ENOBUFS || error == ENOMEM ||
           error == EOPNOTSUPP;
}

static void pause_ms(long ms)
{
    struct timespec span = {ms / 1000, ms % 1000 * 1000000};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &span, NULL);
}

/* end_threads() - have both threads finish what they have in hand */
static void end_threads(void)
{
    tunnel.is_ending = true;
    for (int ms = 0; ms < END_PATIENCE_MS && !(tunnel.outward.has_ended && tunnel.inward.has_ended); ms++) {
        /* Again and again, since a signal may come just before a thread begins to wait. */
        if (!tunnel.outward.has_ended)
            pthread_kill(tunnel.outward.thread, WAKE_SIGNAL);
        if (!tunnel.inward.has_ended)
            pthread_kill(tunnel.inward.thread, WAKE_SIGNAL);
        pause_ms(1);
    }
    if (tunnel.outward.has_ended && tunnel.inward.has_ended) {
        pthread_join(tunnel.outward.thread, NULL);
        pthread_join(tunnel.inward.thread, NULL);
    }
}

/* ---- peers --------------------------------------------------------------------------------------------------------- */

/* fill() - make a table of all peers, named and in the file; Return: false with a sentence */
static bool fill(struct table *table, char *error)
{
    char why[ERROR_MAX_BYTES];

    table_clear(table);
    for (unsigned i = 0; i < arguments.peers_count; i++)
        if (!table_add_text(table, &tunnel.listen, arguments.peers[i], why)) {
            snprintf(error, ERROR_MAX_BYTES, "--peer: %.500s", why);
            return false;
        }
    return !arguments.peers_path || table_load(table, &tunnel.listen, arguments.peers_path, error);
}

/* carry_over() - let the books of peers that stay go on; of those that went on being counted meanwhile, all */
static void carry_over(struct table *from, struct table *to)
{
    for (uint32_t i = 0; i < to->peers_count; i++) {
        struct peer *old = table_sender(from, &to->peers[i].endpoint);

        if (!old)
            continue;
        _Atomic uint64_t *sum = (_Atomic uint64_t *)&to->peers[i].carried;
        _Atomic uint64_t *counted = (_Atomic uint64_t *)&old->books, *before = (_Atomic uint64_t *)&old->carried;
        for (size_t j = 0; j < sizeof old->books / sizeof(uint64_t); j++)
            sum[j] = counted[j] + before[j];
    }
}

/* reload() - read the peers again; if all is good the new table takes the old one's place, else nothing changes */
static void reload(void)
{
    struct table *old = tunnel.table, *new = old == &tables[0] ? &tables[1] : &tables[0];
    char error[ERROR_MAX_BYTES];

    if (!fill(new, error)) {
        say("not reloaded: %s", error);
        return;
    }
    tunnel.table = new;
    while (tunnel.outward.holds == old || tunnel.inward.holds == old)
        pause_ms(1);
    carry_over(old, new);
    say("reloaded %u peers", new->peers_count);
}

/* warn_of_mtu() - say which paths carry less than the device promises to its senders */
static bool warn_of_mtu(void)
{
    struct table *table = tunnel.table;
    int promised = device_mtu(&tunnel);
    char text[ENDPOINT_MAX_BYTES];

    for (uint32_t i = 0; promised >= 0 && i < table->peers_count; i++) {
        int carried = path_mtu(&tunnel, &table->peers[i].endpoint);

        if (carried && carried < promised)
            say("warning: the MTU of %s is %d, but the path to %s carries %d and %zu of overhead; try: ip link set %s"
                " mtu %d",
                tunnel.device_name, promised, show_endpoint(&table->peers[i].endpoint, text), carried,
                tunnel.overhead_bytes, tunnel.device_name, carried);
    }
    return promised >= 0;
}

/* ---- what was counted ---------------------------------------------------------------------------------------------- */

static uint64_t total(enum counter counter)
{
    return tunnel.outward.counters[counter] + tunnel.inward.counters[counter];
}

/* list_counters() - write NAME NUMBER pairs into a line
 * @format:    of a pair
 * @with_none: also those that are 0
 */
static const char *list_counters(char *line, const char *format, const char *between, bool with_none)
{
    size_t length = 0;

    line[0] = '\0';
    for (unsigned i = 0; i < COUNTERS; i++) {
        uint64_t number = total(i);

        if (!number && !with_none)
            continue;
        if (length)
            length += (size_t)snprintf(line + length, LINE_BYTES - length, "%s", between);
        length += (size_t)snprintf(line + length, LINE_BYTES - length, format, COUNTER_NAMES[i], number);
    }
    return line;
}

static void say_counters(void)
{
    char line[LINE_BYTES];

    say("{\"schema\": \"muslin.tunnel/v1\", %s}", list_counters(line, "\"%s\": %" PRIu64, ", ", true));
}

/* say_peers() - one line of JSON with the books of all peers that there was traffic with */
static void say_peers(void)
{
    static char buffer[65536];
    static const char *const names[] = {"packets_to_peers",   "bytes_to_peers",   "too_big",    "send_failed",
                                        "packets_from_peers", "bytes_from_peers", "bad_source", "malformed",
                                        "congested",          "tun_failed"};
    struct table *table = tunnel.table;
    size_t length = (size_t)snprintf(buffer, sizeof buffer, "{\"schema\": \"muslin.tunnel-peers/v1\", \"peers\": {");
    const char *comma = "";
    char text[ENDPOINT_MAX_BYTES];

    _Static_assert(sizeof names / sizeof names[0] == sizeof(struct peer_books) / sizeof(uint64_t), "a name for each");
    for (uint32_t i = 0; i < table->peers_count; i++) {
        _Atomic uint64_t *now = (_Atomic uint64_t *)&table->peers[i].books;
        _Atomic uint64_t *before = (_Atomic uint64_t *)&table->peers[i].carried;
        bool is_first = true;

        if (length > sizeof buffer - 1024) { /* a peer takes 550 bytes at most */
            if (write(STDERR_FILENO, buffer, length) < 0)
                return;
            length = 0;
        }
        for (size_t j = 0; j < sizeof names / sizeof names[0]; j++) {
            if (now[j] + before[j] == 0)
                continue;
            if (is_first)
                length += (size_t)snprintf(buffer + length, sizeof buffer - length, "%s\"%s\": {",
                                           comma, show_endpoint(&table->peers[i].endpoint, text));
            length += (size_t)snprintf(buffer + length, sizeof buffer - length, "%s\"%s\": %" PRIu64,
                                       is_first ? "" : ", ", names[j], now[j] + before[j]);
            is_first = false;
        }
        if (is_first)
            continue;
        buffer[length++] = '}';
        comma = ", ";
    }
    length += (size_t)snprintf(buffer + length, sizeof buffer - length, "}}\n");
    if (write(STDERR_FILENO, buffer, length) < 0)
        return;
}

/* ---- running ------------------------------------------------------------------------------------------------------- */

static void do_nothing(int number)
{
    (void)number;
}

/* expect_signals() - from now on the main thread alone takes them, one by one
 * @expected:  set to which; all of them stay blocked
 */
static void expect_signals(sigset_t *expected)
{
    const int numbers[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, WAKE_SIGNAL, SIGHUP};
    struct sigaction action = {.sa_handler = do_nothing};

    sigemptyset(expected);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (numbers[i] != SIGHUP || arguments.peers_path)
            sigaddset(expected, numbers[i]);
    pthread_sigmask(SIG_BLOCK, expected, NULL);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigismember(expected, numbers[i]))
            sigaction(numbers[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* run_thread() - let a thread be woken, and by nothing else */
static void *run_thread(void *run)
{
    sigset_t wake;

    pthread_barrier_wait(&have_started); /* the C library has called what a new thread calls: confine() allows less */

    sigemptyset(&wake);
    sigaddset(&wake, WAKE_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
    return ((void *(*)(void *))run)(&tunnel);
}

/* serve() - follow signals until one of them, or the device, ends it; Return: exit status */
static int serve(const sigset_t *expected)
{
    char line[LINE_BYTES];
    int number = 0;

    while (number != SIGTERM && number != SIGINT && !tunnel.device_errno) {
        number = sigwaitinfo(expected, NULL);
        if (number == SIGHUP)
            reload();
        if (number == SIGUSR1)
            say_counters();
        if (number == SIGUSR2)
            say_peers();
    }
    end_threads();
    if (tunnel.device_errno)
        say("the TUN device %s is gone: %s", tunnel.device_name, strerror(tunnel.device_errno));
    say("ended: %s", list_counters(line, "%s %" PRIu64, ", ", false));
    return tunnel.device_errno ? 1 : 0;
}

/* set_up() - open what has to be open; Return: false, after having said why */
static bool set_up(void)
{
    char text[ENDPOINT_MAX_BYTES];

    tunnel.device = tunnel.underlay = tunnel.predecessor = -1;
    if (arguments.predecessor && !take_over(&tunnel, arguments.predecessor)) {
        say("cannot take %s over from process %d: %s", tunnel.device_name, arguments.predecessor, strerror(errno));
        return false;
    }
    if (!open_device(&tunnel)) {
        say("cannot attach to the TUN device %s: %s", tunnel.device_name, strerror(errno));
        return false;
    }
    if (!open_underlay(&tunnel)) {
        say("cannot listen on %s: %s", show_endpoint(&tunnel.listen, text), strerror(errno));
        return false;
    }
    if (!warn_of_mtu()) {
        say("cannot read the MTU of %s: %s", tunnel.device_name, strerror(errno));
        return false;
    }
    return true;
}

static void print_help(const char *name)
{
    printf("usage: %s --device NAME --listen ADDRESS:PORT [--peer PREFIX=ADDRESS:PORT ...] [--peers FILE]\n\n"
           "Carry IP packets between TUN and UDP.\n\n"
           "  --device NAME    TUN device, such as tun0\n"
           "  --listen ADDRESS:PORT\n"
           "                   this node on the underlay\n"
           "  --peer PREFIX=ADDRESS:PORT\n"
           "                   another node and the inner addresses behind it; may be repeated\n"
           "  --peers FILE     more of them, a line of PREFIX ADDRESS:PORT each; SIGHUP reads it again\n"
           "  --take-over PID  get device and port from the tunnel of this number, which then ends; no packet is lost\n"
           "  --plain          packet by packet, as on a kernel that offloads nothing; to compare\n",
           name);
}

int main(int count, char **words)
{
    char text[ENDPOINT_MAX_BYTES], error[ERROR_MAX_BYTES];
    const char *slash = strrchr(words[0], '/'), *name = slash ? slash + 1 : words[0];
    sigset_t expected;

    if (!parse_arguments(count, words, &arguments, error)) {
        say("%s: %s", name, error);
        return 2;
    }
    if (arguments.wants_help) {
        print_help(name);
        return 0;
    }
    tunnel.device_name = arguments.device;
    tunnel.listen = arguments.listen;
    tunnel.is_plain = arguments.is_plain;
    tunnel.main = pthread_self();
    tunnel.table = &tables[0];
    if (!fill(tunnel.table, error)) {
        say("%s: %s", name, error);
        return 2;
    }
    expect_signals(&expected);
    if (!set_up())
        return 1;
    if (!isolate())
        say("warning: cannot give up all rights: %s", strerror(errno));
    if (!fence(arguments.peers_path, error))
        say("warning: files are not fenced off: %s", error);
    if (pthread_barrier_init(&have_started, NULL, 3) ||
        pthread_create(&tunnel.outward.thread, NULL, run_thread, run_outward) ||
        pthread_create(&tunnel.inward.thread, NULL, run_thread, run_inward)) {
        say("cannot start a thread");
        return 1;
    }
    pthread_barrier_wait(&have_started);
    if (tunnel.predecessor >= 0)
        syscall(SYS_pidfd_send_signal, tunnel.predecessor, SIGTERM, NULL, 0);
    if (!confine(error))
        say("warning: system calls are not confined: %s", error);
    say("ready %s on %s, %u peers", tunnel.device_name, show_endpoint(&tunnel.listen, text), tunnel.table->peers_count);
    _exit(serve(&expected));
}
