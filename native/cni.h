/* What the plugin and its two ways to an agent share. Numbers are those of src/muslin/wire/cni_socket.py. */

#ifndef MUSLIN_CNI_H
#define MUSLIN_CNI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cni_json.h"

#define STDIN_MAX_BYTES (1 << 20)       /* a network configuration; runtimes write some hundred bytes */
#define ENVIRONMENT_MAX_BYTES (1 << 16) /* all CNI_ variables */
#define ANSWER_MAX_BYTES (1 << 20)      /* a result */
#ifndef PATIENCE_MS
#define PATIENCE_MS 60000 /* for standard input, and for the agent; runtimes give up after minutes */
#endif

#define FLAG_NETNS 1     /* a descriptor of CNI_NETNS comes with the first byte */
#define FLAG_OWN_NETNS 2 /* CNI_NETNS is the namespace that the plugin runs in */
#define FLAG_SPOOLED 4   /* read from the spool */

/* What goes ahead of the environment and of standard input, in native byte order. */
struct header {
    char magic[4]; /* MCNI */
    uint16_t version, flags;
    int32_t netns_errno; /* why CNI_NETNS could not be opened */
    uint32_t environment_bytes, stdin_bytes;
};
_Static_assert(sizeof(struct header) == 20, "no padding");

/* What comes ahead of the answer's document. */
struct answer_header {
    uint32_t exit_status, bytes;
};
_Static_assert(sizeof(struct answer_header) == 8, "no padding");

/* A call as it is told to the agent. */
struct request {
    struct header header;
    char environment[ENVIRONMENT_MAX_BYTES]; /* NAME=VALUE, each with a NUL behind */
    char stdin_text[STDIN_MAX_BYTES + 1];    /* one more, to see what is too long */
    int netns;                               /* -1 for none */
};

struct answer {
    struct answer_header header;
    char document[ANSWER_MAX_BYTES];
};

/* What became of a question. */
enum outcome {
    OUTCOME_ANSWERED,
    OUTCOME_NO_AGENT, /* nobody listens */
    OUTCOME_FAILED,   /* a system call did, that does not fail because of the agent */
    OUTCOME_LOST,     /* the agent went away before it had answered */
    OUTCOME_SILENT,   /* it has not answered in time */
    OUTCOME_NONSENSE, /* it has answered something else */
};

/* What became of a request that should be kept for later. */
enum keeping {
    KEEPING_DONE,
    KEEPING_NOTHING, /* there is no directory of an agent, so there never was one, and nothing is there to undo */
    KEEPING_FAILED,
};

#define KEPT_NAME_BYTES 48

int64_t now_ms(void);
bool await(int fd, short events, int64_t deadline_ms);
enum outcome ask_agent(const struct request *request, const char *path, struct answer *answer, int *error);
enum keeping keep_request(const struct request *request, const char *path, char *name, int *error);
void drop_request(const char *path, const char *name);

#endif
