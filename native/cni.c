/* muslin-cni - the plugin that container runtimes execute: it hands each call to the agent of this host
 *
 * Theory of operation
 *
 * A CNI plugin is a program that is started for each call, so it is paid for with each container. This one does what
 * only it can do, as it alone is where the runtime started it, and nothing else: it takes the environment, standard input
 * and the network namespace, hands them to the agent (cni_agent.c), writes down what the agent answers and ends with the
 * status that the agent says. What the call means, the agent decides (src/muslin/wire/cni.py). Without an agent the
 * plugin answers by itself, at once, in the form of the specification (CNI 1.1, SPEC.md):
 *
 *     VERSION       always answered here: it has to work before anything is set up
 *     ADD, CHECK    error 11, try again later
 *     STATUS        error 50: no container could be added. Not 51, as what is connected stays so without an agent
 *     GC            error 11: what is to be removed is still there, and the runtime will ask again
 *     DEL           success. A runtime that cannot undo a container keeps it forever, so the call is kept for the agent
 *                   in a file, from which it is done when the agent is back; and if there never was one, there is
 *                   nothing to undo
 *
 * An agent that goes away or hangs in the middle counts as none. One that we may not talk to does not: then the plugin
 * has the wrong user, and no waiting helps (error 5, for DEL as well).
 *
 * What stands on standard output is one JSON document or nothing: an answer is received whole, and looked at, before its
 * first byte is written. Everything is bounded, memory is static, no system call waits without an end. CNI_NETNS may name
 * anything, also what hangs or acts when it is opened (a FIFO, a watchdog), so it is opened only once it is known to lie
 * on the file system of namespaces.
 */

#include "cni.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef DEFAULT_SOCKET
#define DEFAULT_SOCKET "/run/muslin-agent/cni.sock"
#endif
#define OWN_NETNS "/proc/self/ns/net"
#define SENTENCE_MAX_BYTES 1024
#define QUOTED_MAX 256 /* of somebody else's text in a sentence */

/* Of the specification, section "Error". */
enum code {
    CODE_ENVIRONMENT = 4,
    CODE_IO = 5,
    CODE_DECODE = 6,
    CODE_CONFIGURATION = 7,
    CODE_LATER = 11,
    CODE_UNAVAILABLE = 50,
};

enum command { COMMAND_ADD, COMMAND_CHECK, COMMAND_DEL, COMMAND_GC, COMMAND_STATUS, COMMAND_VERSION, COMMANDS };

static const char *const COMMAND_NAMES[] = {"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"};
_Static_assert(sizeof COMMAND_NAMES / sizeof COMMAND_NAMES[0] == COMMANDS, "a name for each command");

/* In which the agent answers; those of src/muslin/cli/cni_network.py, by a test. */
#define NEWEST "1.1.0"
static const char *const VERSIONS[] = {"0.3.1", "0.4.0", "1.0.0", NEWEST};
#define VERSIONS_LIST "[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"" NEWEST "\"]"

static struct request request;
static struct answer answer;
static struct conf conf;

/* ---- what is said -------------------------------------------------------------------------------------------------- */

/* say() - write one line on standard error, which runtimes put into their logs */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[SENTENCE_MAX_BYTES];
    va_list values;

    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length] = '\n';
    if (!await(STDERR_FILENO, POLLOUT, now_ms() + PATIENCE_MS) || write(STDERR_FILENO, line, (size_t)length + 1) < 0)
        return;
}

/* tell() - write a document on standard output; Return: false, after having said why, if nobody takes it
 *
 * A pipe that is ready takes PIPE_BUF bytes without waiting (pipe(7)), and so many are written at a time.
 */
static bool tell(const char *document, size_t bytes)
{
    int64_t deadline_ms = now_ms() + PATIENCE_MS;
    bool is_taken = true;

    while (bytes && is_taken) {
        is_taken = await(STDOUT_FILENO, POLLOUT, deadline_ms);
        ssize_t count = is_taken ? write(STDOUT_FILENO, document, bytes < PIPE_BUF ? bytes : PIPE_BUF) : 0;

        if (count < 0)
            is_taken = errno == EINTR || errno == EAGAIN;
        if (count > 0) {
            document += count;
            bytes -= (size_t)count;
        }
    }
    if (!is_taken)
        say("muslin-cni: standard output cannot be written to: %s", strerror(errno));
    return is_taken;
}

/* answer_version() - in which version to word what we say: the one that was asked for, if it is one of ours */
static const char *answer_version(void)
{
    for (size_t i = 0; conf.version == MEMBER_TEXT && i < sizeof VERSIONS / sizeof VERSIONS[0]; i++)
        if (strcmp(conf.version_text, VERSIONS[i]) == 0)
            return VERSIONS[i];
    return NEWEST;
}

/* fail() - tell an error
 * @remedy:  what would mend it
 * @format:  a sentence: what was attempted, and why it did not work
 *
 * Return: exit status
 */
__attribute__((format(printf, 3, 4))) static int fail(enum code code, const char *remedy, const char *format, ...)
{
    char sentence[SENTENCE_MAX_BYTES], escaped[6 * SENTENCE_MAX_BYTES], details[6 * SENTENCE_MAX_BYTES];
    char document[sizeof escaped + sizeof details + 128];
    va_list values;

    va_start(values, format);
    vsnprintf(sentence, sizeof sentence, format, values);
    va_end(values);
    escape(sentence, strlen(sentence), escaped, sizeof escaped);
    escape(remedy, strlen(remedy), details, sizeof details);
    int length = snprintf(document, sizeof document, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n",
                          answer_version(), code, escaped, details);
    tell(document, (size_t)length);
    return EXIT_FAILURE;
}

/* tell_versions() - the answer to VERSION, with the version that was asked in; Return: exit status */
static int tell_versions(void)
{
    static const char letters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.+-"; /* semver.org */
    char document[VERSION_MAX_BYTES + 128];
    const char *text = conf.version_text;
    bool is_version = conf.version == MEMBER_TEXT && *text && !text[strspn(text, letters)];

    int length = snprintf(document, sizeof document, "{\"cniVersion\":\"%s\",\"supportedVersions\":" VERSIONS_LIST "}\n",
                          is_version ? text : NEWEST);
    return tell(document, (size_t)length) ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- what is asked ------------------------------------------------------------------------------------------------- */

/* hold_standard_streams() - see to it that nothing which is opened later passes for one that was closed
 *
 * What stands for it can neither be read nor written.
 */
static void hold_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/", O_PATH) != fd)
            _exit(EXIT_FAILURE);
}

/* is_stdout_open() - see whether a result could be written; what stands for a closed stream counts as read-only */
static bool is_stdout_open(void)
{
    return (fcntl(STDOUT_FILENO, F_GETFL) & O_ACCMODE) != O_RDONLY;
}

/* take_environment() - copy the variables of CNI into the request; Return: false if they are too long */
static bool take_environment(void)
{
    extern char **environ;
    size_t length = 0;

    for (char **variable = environ; variable && *variable; variable++) {
        size_t bytes = strlen(*variable) + 1;

        if (strncmp(*variable, "CNI_", 4) != 0)
            continue;
        if (bytes > sizeof request.environment - length)
            return false;
        memcpy(request.environment + length, *variable, bytes);
        length += bytes;
    }
    request.header.environment_bytes = (uint32_t)length;
    return true;
}

/* read_stdin() - read standard input to its end, or to one byte more than is allowed; Return: false with errno */
static bool read_stdin(void)
{
    int64_t deadline_ms = now_ms() + PATIENCE_MS;
    size_t length = 0;

    while (length < sizeof request.stdin_text) {
        if (!await(STDIN_FILENO, POLLIN, deadline_ms))
            return false;
        ssize_t count = read(STDIN_FILENO, request.stdin_text + length, sizeof request.stdin_text - length);
        if (count == 0)
            break;
        if (count < 0 && errno != EINTR && errno != EAGAIN)
            return false;
        if (count > 0)
            length += (size_t)count;
    }
    request.header.stdin_bytes = (uint32_t)length;
    return true;
}

/* open_netns() - Return: a descriptor of the network namespace at a path, or -1 with errno; EINVAL: it is none */
static int open_netns(const char *path)
{
    struct statfs system;
    int fd = -1;

    if (statfs(path, &system))
        return -1;
    if (system.f_type == NSFS_MAGIC && (fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) < 0)
        return -1;
    if (fd >= 0 && fstatfs(fd, &system) == 0 && system.f_type == NSFS_MAGIC && ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET)
        return fd;
    if (fd >= 0)
        close(fd);
    errno = EINVAL;
    return -1;
}

/* take_netns() - open what CNI_NETNS names and compare it with our own; Return: false with errno if ours is hidden */
static bool take_netns(void)
{
    const char *path = getenv("CNI_NETNS");
    struct stat own, other;

    if (!path || !*path)
        return true;
    request.netns = open_netns(path);
    if (request.netns < 0) {
        request.header.netns_errno = errno;
        return true;
    }
    request.header.flags |= FLAG_NETNS;
    if (stat(OWN_NETNS, &own) || fstat(request.netns, &other))
        return false;
    if (own.st_dev == other.st_dev && own.st_ino == other.st_ino)
        request.header.flags |= FLAG_OWN_NETNS;
    return true;
}

/* ---- what is answered ---------------------------------------------------------------------------------------------- */

/* is_sensible() - see whether an answer is one: a document, or nothing where there is nothing to say */
static bool is_sensible(enum command command)
{
    struct conf unused;
    size_t at;

    if (answer.header.exit_status > UINT8_MAX)
        return false;
    if (!answer.header.bytes)
        return !answer.header.exit_status && command != COMMAND_ADD;
    return scan_conf(answer.document, answer.header.bytes, &unused, &at) == NULL;
}

/* keep_for_later() - have a DEL done when there is an agent again
 * @name:  takes KEPT_NAME_BYTES; empty if there is nothing to keep
 * @why:   why it cannot be done now
 *
 * Return: exit status
 */
static int keep_for_later(const char *path, char *name, const char *why)
{
    int error;

    name[0] = '\0';
    switch (keep_request(&request, path, name, &error)) {
    case KEEPING_DONE:
        say("muslin-cni: %s at %s; the DEL is done when it is back", why, path);
        return EXIT_SUCCESS;
    case KEEPING_NOTHING:
        return EXIT_SUCCESS;
    default:
        return fail(CODE_IO, "start the agent, or see to the directory cni-spool beside the socket",
                    "%s at %s, and the DEL cannot be kept for it: %s", why, path, strerror(error));
    }
}

/* conclude() - give the runtime what the agent has answered, or answer in its place; Return: exit status */
static int conclude(enum command command, enum outcome outcome, const char *path, int error)
{
    enum code later = command == COMMAND_STATUS ? CODE_UNAVAILABLE : CODE_LATER;

    if (outcome == OUTCOME_ANSWERED && is_sensible(command))
        return tell(answer.document, answer.header.bytes) ? (int)answer.header.exit_status : EXIT_FAILURE;
    switch (outcome) {
    case OUTCOME_NO_AGENT:
        return fail(later,
                    "start it: `systemctl start muslin-agent`, or `muslin agent`; one with another --run-dir is named by"
                    " \"socket\" in the network configuration: `muslin cni install --socket`",
                    "no agent answers at %s: %s", path, strerror(error));
    case OUTCOME_LOST:
        return fail(later, "its log tells why", "the agent at %s went away before it had answered", path);
    case OUTCOME_SILENT:
        return fail(later, "its log tells what it is busy with", "the agent at %s has not answered within %d s", path,
                    PATIENCE_MS / 1000);
    case OUTCOME_FAILED:
        return fail(CODE_IO, "the plugin has to run as root, and security modules have to let it connect",
                    "the agent's socket %s cannot be used: %s", path, strerror(error));
    default:
        return fail(CODE_IO, "the agent and the plugin have to be of one version: `muslin cni install` writes the plugin",
                    "the agent at %s has answered what makes no sense", path);
    }
}

/* delete() - DEL: by the agent, now or later; Return: exit status */
static int delete(const char *path)
{
    char name[KEPT_NAME_BYTES];
    int error;
    enum outcome outcome = ask_agent(&request, path, &answer, &error);

    if (outcome == OUTCOME_LOST || outcome == OUTCOME_SILENT)
        return keep_for_later(path, name, "the agent did not answer");
    if (outcome != OUTCOME_NO_AGENT)
        return conclude(COMMAND_DEL, outcome, path, error);
    int status = keep_for_later(path, name, "no agent answers");
    /* One that came up meanwhile may have read its spool before our file was in it. */
    if (status || !name[0] || ask_agent(&request, path, &answer, &error) != OUTCOME_ANSWERED)
        return status;
    drop_request(path, name);
    return conclude(COMMAND_DEL, OUTCOME_ANSWERED, path, 0);
}

/* ---- running ------------------------------------------------------------------------------------------------------- */

/* parse_command() - Return: which, COMMANDS if it is none */
static enum command parse_command(const char *text)
{
    int command = 0;

    while (command < COMMANDS && strcmp(text, COMMAND_NAMES[command]) != 0)
        command++;
    return (enum command)command;
}

static bool is_about_a_container(enum command command)
{
    return command == COMMAND_ADD || command == COMMAND_CHECK || command == COMMAND_DEL;
}

static bool is_set(const char *name)
{
    const char *value = getenv(name);

    return value && *value;
}

/* check_conf() - see whether the configuration tells where to go; Return: 0, or the exit status after a failure
 *
 * A DEL goes to the usual place with whatever it brings: what it is about stands in the environment, and what was
 * written wrong must not keep a container from being removed.
 */
static int check_conf(enum command command)
{
    size_t at;
    const char *expected = scan_conf(request.stdin_text, request.header.stdin_bytes, &conf, &at);

    if (expected && command != COMMAND_DEL)
        return fail(CODE_DECODE, "a network configuration is one JSON object",
                    "standard input is no network configuration: expected %s at byte %zu of %u", expected, at,
                    (unsigned)request.header.stdin_bytes);
    if (conf.socket == MEMBER_UNUSABLE || (conf.socket == MEMBER_TEXT && conf.socket_text[0] != '/'))
        return fail(CODE_CONFIGURATION, "leave it out for " DEFAULT_SOCKET,
                    "\"socket\" in the network configuration is no path of a socket; expected a string that begins with /"
                    " and has at most %d bytes", SOCKET_MAX_BYTES - 1);
    return 0;
}

/* prepare() - take what goes to the agent; Return: 0, or the exit status after a failure */
static int prepare(enum command command)
{
    int status = check_conf(command);

    if (status)
        return status;
    if (command == COMMAND_DEL && (!is_set("CNI_CONTAINERID") || !is_set("CNI_IFNAME")))
        return fail(CODE_ENVIRONMENT, "a runtime sets both", "CNI_CONTAINERID or CNI_IFNAME is missing; expected both");
    if (!take_environment())
        return fail(CODE_ENVIRONMENT, "shorten CNI_ARGS", "the variables of CNI take more than %d bytes",
                    ENVIRONMENT_MAX_BYTES);
    if (is_about_a_container(command) && !take_netns())
        return fail(CODE_IO, "mount /proc where the runtime starts its plugins",
                    "cannot tell whether CNI_NETNS is the host's own, as " OWN_NETNS " cannot be read: %s",
                    strerror(errno));
    return 0;
}

/* run() - do what CNI_COMMAND says; Return: exit status */
static int run(const char *word)
{
    enum command command = parse_command(word);
    int error;

    if (!read_stdin())
        return fail(CODE_IO, "a runtime writes a network configuration and closes it",
                    "standard input cannot be read: %s", strerror(errno));
    if (request.header.stdin_bytes > STDIN_MAX_BYTES) {
        request.header.stdin_bytes = 0;
        return fail(CODE_CONFIGURATION, "make it shorter", "the network configuration has more than %d bytes",
                    STDIN_MAX_BYTES);
    }
    if (command == COMMANDS || command == COMMAND_VERSION) {
        size_t at;

        scan_conf(request.stdin_text, request.header.stdin_bytes, &conf, &at);
        return command == COMMAND_VERSION
                   ? tell_versions()
                   : fail(CODE_ENVIRONMENT, "expected ADD, CHECK, DEL, GC, STATUS or VERSION",
                          "CNI_COMMAND is '%.*s', which is no command", QUOTED_MAX, word);
    }
    int status = prepare(command);
    if (status)
        return status;
    const char *path = conf.socket == MEMBER_TEXT ? conf.socket_text : DEFAULT_SOCKET;
    if (command == COMMAND_DEL)
        return delete(path);
    enum outcome outcome = ask_agent(&request, path, &answer, &error);
    return conclude(command, outcome, path, error);
}

int main(void)
{
    const char *word = getenv("CNI_COMMAND");

    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN);
    request.netns = -1;
    memcpy(request.header.magic, "MCNI", sizeof request.header.magic);
    request.header.version = 1;
    if (!word || !*word) {
        say("muslin-cni: connects containers through Muslin's agent; container runtimes start it.\n"
            "CNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, " NEWEST);
        return EXIT_SUCCESS;
    }
    if (!is_stdout_open()) {
        say("muslin-cni: standard output is closed, so nothing could be answered and nothing is done");
        return EXIT_FAILURE;
    }
    return run(word);
}
