#include "random_weights.h"

#include <stdlib.h>
#include <string.h>

#include "file/tensor_types.h"

struct MadeUp {
    MadeUp *next;
    TensorType type;
    bool ones;
    uint64_t size;
    uint8_t data[];
};

/* The float16 numbers of a block, chosen so that its weights have a mean of 0 and a deviation of 1/64: what they are
 * and where they lie. All its other bytes may be anything. */
static const struct {
    uint16_t type, at, value;
} scales[] = {{TYPE_Q4_0, 0, 0x1af5}, {TYPE_Q4_1, 0, 0x1af5}, {TYPE_Q4_1, 2, 0xa686}, {TYPE_Q5_0, 0, 0x16f5},
              {TYPE_Q5_1, 0, 0x16f5}, {TYPE_Q5_1, 2, 0xa6bd}, {TYPE_Q8_0, 0, 0x0aeb}, {TYPE_Q4_K, 0, 0x051f},
              {TYPE_Q4_K, 2, 0x10cd}, {TYPE_Q5_K, 0, 0x028f}, {TYPE_Q5_K, 2, 0x10f6}, {TYPE_Q6_K, 208, 0x00bf}};

static void make_block(TensorType type, uint64_t random, uint8_t *block) {
    const uint64_t signs = random >> 63 << 15, mantissa = random & 0x3ff;
    const float number = (float)((int64_t)(random >> 40) - (1 << 23)) * 0x1p-28f;
    const uint16_t half = (uint16_t)(signs | 0x2400 | mantissa),
                   bfloat = (uint16_t)(signs | 0x3c80 | (mantissa & 0x7f));
    if (type == TYPE_F32) memcpy(block, &number, sizeof number);
    if (type == TYPE_F16) memcpy(block, &half, sizeof half);
    if (type == TYPE_BF16) memcpy(block, &bfloat, sizeof bfloat);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        if (scales[i].type == type) memcpy(block + scales[i].at, &scales[i].value, sizeof scales[i].value);
}

static void fill(MadeUp *m) {
    static const float one = 1;
    const TensorTypeLayout *layout = tensor_type_layout(m->type);
    const uint64_t pattern = (uint64_t)(1 << 20) / layout->block_bytes * layout->block_bytes;
    const uint64_t first = m->size < pattern ? m->size : pattern;
    uint64_t random = 1;
    for (uint64_t i = 0; i < first; i++) m->data[i] = (uint8_t)((random = random * 6364136223846793005u + 1) >> 56);
    for (uint64_t i = 0; i + layout->block_bytes <= first; i += layout->block_bytes) {
        make_block(m->type, random = random * 6364136223846793005u + 1, m->data + i);
        if (m->ones) memcpy(m->data + i, &one, sizeof one);
    }
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
