/* Theory of operation
 *
 * Two ways to an agent. ask_agent() is the one: a stream socket, the request, the answer, all before a deadline. The
 * network namespace goes along as a descriptor (SCM_RIGHTS, unix(7)), so that the agent need not see the path: it may
 * live in another mount namespace. Whoever has sent a request and goes away before the answer came has it undone; that
 * is how a runtime's impatience is heard of. Therefore the sending side stays open.
 *
 * keep_request() is the other, for a DEL while nobody listens: the same bytes as a file of the directory cni-spool beside
 * the socket. It is written under another name, synced and renamed, so that a reader finds whole ones alone. An agent
 * listens first and reads the spool then. So who keeps a request, looks once more whether somebody listens by now, and
 * finds nobody, is sure that it will be read.
 */

#include "cni.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SPOOL_NAME "cni-spool"
#define TRIES 8 /* for a name in the spool that nobody has */

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* await() - wait until a descriptor is ready
 * @events:       POLLIN or POLLOUT
 * @deadline_ms:  by now_ms()
 *
 * Return: false when the time is over, with errno ETIMEDOUT
 */
bool await(int fd, short events, int64_t deadline_ms)
{
    struct pollfd polled = {.fd = fd, .events = events};

    for (;;) {
        int64_t left = deadline_ms - now_ms();
        int ready = left > 0 ? poll(&polled, 1, (int)left) : 0;

        if (ready > 0)
            return true;
        if (ready == 0)
            errno = ETIMEDOUT;
        if (ready == 0 || errno != EINTR)
            return false;
    }
}

/* ---- the socket ---------------------------------------------------------------------------------------------------- */

/* connect_agent() - Return: a descriptor, or -1 with errno; EAGAIN after PATIENCE_MS with all places in its queue taken */
static int connect_agent(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000, .tv_usec = PATIENCE_MS % 1000 * 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), error;

    if (fd < 0)
        return -1;
    memcpy(address.sun_path, path, strnlen(path, sizeof address.sun_path - 1));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    do
        error = connect(fd, (struct sockaddr *)&address, sizeof address) ? errno : 0;
    while (error == EINTR);
    if (error) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* attach() - have a descriptor sent along; @control must be aligned as a struct cmsghdr */
static void attach(struct msghdr *message, char *control, size_t room, int fd)
{
    message->msg_control = control;
    message->msg_controllen = room;
    struct cmsghdr *part = CMSG_FIRSTHDR(message);

    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
}

/* gather() - the parts of a request, with this header, without the first bytes; Return: how many bytes they are */
static size_t gather(const struct header *header, const struct request *request, size_t skipped, struct iovec parts[3])
{
    const void *bases[] = {header, request->environment, request->stdin_text};
    size_t sizes[] = {sizeof *header, header->environment_bytes, header->stdin_bytes};
    size_t left = 0;

    for (int i = 0; i < 3; i++) {
        size_t less = skipped < sizes[i] ? skipped : sizes[i];

        parts[i].iov_base = (char *)bases[i] + less;
        parts[i].iov_len = sizes[i] - less;
        left += parts[i].iov_len;
        skipped -= less;
    }
    return left;
}

/* send_request() - Return: false, with errno, when it could not be sent whole */
static bool send_request(int fd, const struct request *request, int64_t deadline_ms)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec parts[3];
    size_t sent = 0;

    while (gather(&request->header, request, sent, parts)) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};

        if (!sent && request->netns >= 0)
            attach(&message, control, sizeof control, request->netns);
        ssize_t count = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count > 0)
            sent += (size_t)count;
        else if (errno != EINTR && (errno != EAGAIN || !await(fd, POLLOUT, deadline_ms)))
            return false;
    }
    return true;
}

/* receive() - Return: whether so many bytes came; ANSWERED, LOST, SILENT or FAILED with errno */
static enum outcome receive(int fd, void *to, size_t bytes, int64_t deadline_ms)
{
    char *at = to;

    while (bytes) {
        ssize_t count = recv(fd, at, bytes, MSG_DONTWAIT);

        if (count == 0 || (count < 0 && errno == ECONNRESET))
            return OUTCOME_LOST;
        if (count > 0) {
            at += count;
            bytes -= (size_t)count;
        } else if (errno != EINTR && (errno != EAGAIN || !await(fd, POLLIN, deadline_ms))) {
            return errno == ETIMEDOUT ? OUTCOME_SILENT : OUTCOME_FAILED;
        }
    }
    return OUTCOME_ANSWERED;
}

static enum outcome receive_answer(int fd, struct answer *answer, int64_t deadline_ms)
{
    enum outcome outcome = receive(fd, &answer->header, sizeof answer->header, deadline_ms);

    if (outcome != OUTCOME_ANSWERED)
        return outcome;
    if (answer->header.bytes > sizeof answer->document)
        return OUTCOME_NONSENSE;
    return receive(fd, answer->document, answer->header.bytes, deadline_ms);
}

/* ask_agent() - send a request and wait for the answer
 * @path:    of the agent's socket
 * @answer:  set if there is one
 * @error:   set to an errno for NO_AGENT and FAILED
 */
enum outcome ask_agent(const struct request *request, const char *path, struct answer *answer, int *error)
{
    int64_t deadline_ms = now_ms() + PATIENCE_MS;
    enum outcome outcome = OUTCOME_FAILED;
    int fd = connect_agent(path);

    *error = errno;
    if (fd < 0 && *error == EAGAIN)
        return OUTCOME_SILENT;
    if (fd < 0)
        return *error == ENOENT || *error == ECONNREFUSED || *error == ENOTDIR ? OUTCOME_NO_AGENT : OUTCOME_FAILED;
    /* An agent that goes away in the middle may have answered before. */
    if (send_request(fd, request, deadline_ms) || errno == EPIPE || errno == ECONNRESET)
        outcome = receive_answer(fd, answer, deadline_ms);
    else if (errno == ETIMEDOUT)
        outcome = OUTCOME_SILENT;
    *error = errno;
    close(fd);
    return outcome;
}

/* ---- the spool ----------------------------------------------------------------------------------------------------- */

/* open_directory() - that which a socket is in; Return: a descriptor, or -1 with errno */
static int open_directory(const char *path)
{
    char directory[SOCKET_MAX_BYTES] = "";
    const char *slash = strrchr(path, '/');

    memcpy(directory, path, slash == path ? 1 : (size_t)(slash - path));
    return open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* open_spool() - the spool beside a socket; Return: a descriptor, or -1 with errno */
static int open_spool(int directory)
{
    return openat(directory, SPOOL_NAME, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* write_parts() - write a request into a file and have it on the disk; Return: false with errno */
static bool write_parts(int fd, const struct request *request)
{
    struct header header = request->header;
    struct iovec parts[3];
    size_t written = 0;

    header.flags = (uint16_t)((header.flags & ~FLAG_NETNS) | FLAG_SPOOLED);
    while (gather(&header, request, written, parts)) {
        ssize_t count = writev(fd, parts, 3);

        if (count > 0)
            written += (size_t)count;
        else if (errno != EINTR)
            return false;
    }
    return fsync(fd) == 0;
}

/* create_file() - make a new file in the spool, in the order of time
 * @stem:  takes KEPT_NAME_BYTES: its name without the ending
 *
 * Return: a descriptor, or -1 with errno
 */
static int create_file(int spool, char *stem)
{
    char name[KEPT_NAME_BYTES + 8];
    int fd = -1;

    for (int i = 0; fd < 0 && i < TRIES; i++) {
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        snprintf(stem, KEPT_NAME_BYTES, "%020lld-%d", now.tv_sec * 1000000000LL + now.tv_nsec, (int)getpid());
        snprintf(name, sizeof name, "%s.tmp", stem);
        fd = openat(spool, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    return fd;
}

static bool fill_spool(int spool, const struct request *request, char *name)
{
    char stem[KEPT_NAME_BYTES], temporary[KEPT_NAME_BYTES + 8];
    int fd = create_file(spool, stem);

    if (fd < 0)
        return false;
    snprintf(temporary, sizeof temporary, "%s.tmp", stem);
    snprintf(name, KEPT_NAME_BYTES, "%.40s.del", stem);
    bool is_written = write_parts(fd, request);
    int error = errno;
    close(fd);
    if (is_written && renameat(spool, temporary, spool, name) == 0 && fsync(spool) == 0)
        return true;
    error = is_written ? errno : error;
    unlinkat(spool, temporary, 0);
    errno = error;
    return false;
}

/* keep_request() - put a request into the spool of the agent that would listen at a socket
 * @path:   of the socket
 * @name:   takes KEPT_NAME_BYTES, the file's name, if it is kept
 * @error:  set to an errno on failure
 */
enum keeping keep_request(const struct request *request, const char *path, char *name, int *error)
{
    int directory = open_directory(path), spool = -1;
    enum keeping keeping = KEEPING_FAILED;

    if (directory < 0 && (errno == ENOENT || errno == ENOTDIR))
        return KEEPING_NOTHING;
    if (directory >= 0 && (mkdirat(directory, SPOOL_NAME, 0700) == 0 || errno == EEXIST))
        spool = open_spool(directory);
    if (spool >= 0 && fill_spool(spool, request, name))
        keeping = KEEPING_DONE;
    *error = errno;
    if (spool >= 0)
        close(spool);
    if (directory >= 0)
        close(directory);
    return keeping;
}

/* drop_request() - take a kept request out of the spool, unless an agent has done so */
void drop_request(const char *path, const char *name)
{
    int directory = open_directory(path), spool = directory < 0 ? -1 : open_spool(directory);

    if (spool >= 0) {
        unlinkat(spool, name, 0);
        close(spool);
    }
    if (directory >= 0)
        close(directory);
}
