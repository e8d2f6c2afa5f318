#include <stdio.h>
#include <string.h>

#include "architecture.h"
#include "error.h"

/* One of each other file of this folder, which defines an architecture of the file's name: the build lists them. */
#define ARCHITECTURE(name) extern const Architecture name;
#include "architectures.inc"
#undef ARCHITECTURE
#define ARCHITECTURE(name) &name,
static const Architecture *const architectures[] = {
#include "architectures.inc"
};

enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

static void list_names(char *out, size_t capacity) {
    size_t used = 0;
    for (int i = 0; i < N_ARCHITECTURES; i++) {
        const Architecture *a = architectures[i];
        const int n = snprintf(out + used, capacity - used, "%s%s%s", i ? ", " : "", a->name,
                               a->is_drafter ? " (as a drafter)" : "");
        used += n > 0 && (size_t)n < capacity - used ? (size_t)n : 0;
    }
}

bee_status architecture_find(const bee_file *file, const Architecture **out, bee_error *error) {
    char wanted[64], names[512];
    const bee_status status = gguf_string(file, "general.architecture", true, wanted, sizeof wanted, error);
    if (status) return status;
    for (int i = 0; i < N_ARCHITECTURES; i++) {
        *out = architectures[i];
        if (!strcmp((*out)->name, wanted)) return BEE_OK;
    }
    list_names(names, sizeof names);
    return bee_fail(error, BEE_ERROR_UNSUPPORTED, "architecture '%s' cannot be run; the library runs %s", wanted,
                    names);
}
