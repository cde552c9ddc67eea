/* What runs a fuzz target without libFuzzer: under AFL++, or by itself on the files that are named, to see one again.
 *
 *   CC=afl-clang-fast native/build OUT in-afl   then afl-fuzz -i CORPUS -o FOUND OUT
 *   native/build OUT in-afl                     then OUT FILE ...
 *
 * Under AFL++ one process takes many inputs, from memory that it shares with the fuzzer.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef __AFL_FUZZ_INIT

#define INPUTS_A_PROCESS 10000

__AFL_FUZZ_INIT();

int main(void)
{
    __AFL_INIT();
    const uint8_t *data = __AFL_FUZZ_TESTCASE_BUF; /* not before __AFL_INIT() */

    while (__AFL_LOOP(INPUTS_A_PROCESS)) {
        size_t size = (size_t)__AFL_FUZZ_TESTCASE_LEN;
        uint8_t *copy = malloc(size ? size : 1); /* of exactly this size, so that the sanitizer sees one byte beyond */

        if (!copy)
            return 1;
        for (size_t i = 0; i < size; i++)
            copy[i] = data[i];
        LLVMFuzzerTestOneInput(copy, size);
        free(copy);
    }
    return 0;
}

#else

#define FILE_MAX_BYTES (1 << 20)

int main(int count, char **words)
{
    static uint8_t data[FILE_MAX_BYTES];

    for (int i = 1; i < count; i++) {
        FILE *file = fopen(words[i], "rb");

        if (!file) {
            perror(words[i]);
            return 2;
        }
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    return 0;
}

#endif
