#include "shares.h"

enum { MOST_CHUNKS = UINT16_MAX };

static int least(int a, int b) { return a < b ? a : b; }

Sharing sharing_begin(WorkShare *shares, int index, int count, uint32_t round, int total, int chunk) {
    const int smallest = total / MOST_CHUNKS + 1;
    if (chunk < smallest) chunk = smallest;
    return (Sharing){.shares = shares,
                     .index = index,
                     .count = count,
                     .whose = index,
                     .round = round,
                     .total = total,
                     .chunk = chunk,
                     .n_chunks = (total + chunk - 1) / chunk};
}

static int begin_of(const Sharing *s, int index) { return (int)((int64_t)s->n_chunks * index / s->count); }

/* Of the share that is looked at; -1: nothing is left. What workers write is made visible by the barriers around. */
static int take_chunk(Sharing *s) {
    _Atomic uint64_t *left = &s->shares[s->whose].left;
    uint64_t old = atomic_load_explicit(left, memory_order_relaxed), new;
    int taken;
    do {
        const bool begun = old >> 32 == s->round;
        int first = begun ? (int)(old >> 16 & 0xffff) : begin_of(s, s->whose);
        int end = begun ? (int)(old & 0xffff) : begin_of(s, s->whose + 1);
        if (first >= end) return -1;
        taken = s->whose == s->index ? first++ : --end;
        new = (uint64_t)s->round << 32 | (uint64_t)first << 16 | (uint64_t)end;
    } while (!atomic_compare_exchange_weak_explicit(left, &old, new, memory_order_relaxed, memory_order_relaxed));
    return taken;
}

bool sharing_take(Sharing *s) {
    for (;;) {
        const int chunk = take_chunk(s);
        if (chunk >= 0) {
            s->first = chunk * s->chunk;
            s->end = least(s->first + s->chunk, s->total);
            return true;
        }
        s->whose = (s->whose + 1) % s->count;
        if (s->whose == s->index) return false;
    }
}
