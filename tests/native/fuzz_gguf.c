/* Fuzzer of the GGUF reader. With clang's libFuzzer:
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined ... fuzz_gguf.c gguf.c tensor_types.c error.c
 * `test_gguf --write-sample FILE` makes a first file for its corpus. Compiled with BEE_FUZZ_REPLAY it has a main that
 * runs the files named on the command line instead. */
#include "gguf_exercise.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    exercise_bytes(data, size);
    return 0;
}

#ifdef BEE_FUZZ_REPLAY
int main(int count, char **paths) {
    for (int i = 1; i < count; i++) {
        bee_error error;
        bee_file *file = bee_file_open(paths[i], &error);
        printf("%s: %s\n", paths[i], file ? "opened" : error.message);
        if (file) printf("    checksum %016llx\n", (unsigned long long)exercise(file));
        bee_file_close(file);
    }
    return count > 1 ? 0 : 2;
}
#endif
