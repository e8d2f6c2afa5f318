/* Opens a libbee.so and a model, writes a few tokens and prints them: to try a library on another processor, under
 * emulation.
 *
 *     try_library LIBRARY MODEL.gguf */
#include "bee.h"

#include <dlfcn.h>
#include <stdio.h>

#define SYMBOL(name) __typeof__(&name) name##_ = (__typeof__(&name))dlsym(library, #name)

int main(int count, char **arguments) {
    void *library = count == 3 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    if (!library) return fprintf(stderr, "%s\n", count == 3 ? dlerror() : "usage: try_library LIBRARY MODEL"), 1;
    SYMBOL(bee_version);
    SYMBOL(bee_instruction_sets);
    SYMBOL(bee_engine_open);
    SYMBOL(bee_engine_close);
    SYMBOL(bee_session_open);
    SYMBOL(bee_session_close);
    SYMBOL(bee_session_evaluate);
    printf("libbee %s:", bee_version_());
    for (const char *const *name = bee_instruction_sets_(); *name; name++) printf(" %s", *name);
    printf("\n");
    bee_error error = {0};
    bee_engine_params params = {.n_threads = 1};
    bee_engine *engine = bee_engine_open_(arguments[2], NULL, &params, &error);
    if (!engine) return fprintf(stderr, "%s\n", error.message), 1;
    bee_session *session = bee_session_open_(engine, 64, false, &error);
    if (!session) return fprintf(stderr, "%s\n", error.message), 1;
    static float logits[3 * 1000000];
    const int32_t tokens[] = {1, 2, 3};
    if (bee_session_evaluate_(session, tokens, 3, 1, logits, &error) != BEE_OK)
        return fprintf(stderr, "%s\n", error.message), 1;
    printf("%a %a\n", (double)logits[0], (double)logits[1]);
    bee_session_close_(session);
    bee_engine_close_(engine);
    return 0;
}
