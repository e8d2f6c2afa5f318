#include "random_weights.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "types/types.h"

struct MadeUp {
    MadeUp *next;
    TensorType type;
    bool ones;
    uint64_t size;
    uint8_t data[];
};

static uint64_t next_random(uint64_t *random) { return *random = *random * 6364136223846793005u + 1; }

static void make_blocks(TensorType type, uint8_t *data, uint64_t size) {
    const uint64_t block_bytes = (uint64_t)traits_of(type).bytes;
    uint64_t random = 1;
    for (uint64_t i = 0; i < size; i++) data[i] = (uint8_t)(next_random(&random) >> 56);
    for (uint64_t i = 0; i + block_bytes <= size; i += block_bytes)
        make_random_block(type, data + i, next_random(&random));
}

bee_status bee_random_weights(int32_t type, void *out, size_t bytes, bee_error *error) {
    const WeightTraits t = traits_of((TensorType)type);
    if (!t.bytes || bytes % (size_t)t.bytes)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        t.bytes ? "%zu bytes are no whole blocks of type %d"
                                : "%zu bytes of type %d: no weight type that can run",
                        bytes, (int)type);
    make_blocks((TensorType)type, out, bytes);
    return BEE_OK;
}

static void fill(MadeUp *m) {
    static const float one = 1;
    const uint64_t block_bytes = (uint64_t)traits_of(m->type).bytes;
    const uint64_t pattern = (uint64_t)(1 << 20) / block_bytes * block_bytes;
    const uint64_t first = m->size < pattern ? m->size : pattern;
    make_blocks(m->type, m->data, first);
    for (uint64_t i = 0; m->ones && i + block_bytes <= first; i += block_bytes) memcpy(m->data + i, &one, sizeof one);
    for (uint64_t i = first; i < m->size; i += first)
        memcpy(m->data + i, m->data, m->size - i < first ? m->size - i : first);
}

bool make_up(MadeUp **list, Tensor *tensor) {
    const bool ones = tensor->type == TYPE_F32 && tensor->rows == 1;
    MadeUp *m = *list;
    while (m && (m->type != tensor->type || m->ones != ones || m->size < tensor->size)) m = m->next;
    if (!m) {
        if (!(m = malloc(sizeof *m + tensor->size))) return false;
        *m = (MadeUp){.next = *list, .type = tensor->type, .ones = ones, .size = tensor->size};
        fill(m);
        *list = m;
    }
    tensor->data = m->data;
    return true;
}

void made_up_free(MadeUp *list) {
    while (list) {
        MadeUp *next = list->next;
        free(list);
        list = next;
    }
}
