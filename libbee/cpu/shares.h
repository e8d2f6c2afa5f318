/* Work that is shared out while it is done: a thread on a slower core, or whose core somebody else has for a while, is
 * left with less of it. */
#ifndef BEE_SHARES_H
#define BEE_SHARES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What is left of one worker's share: | round: 32 bits | first chunk: 16 | end: 16 |. One of an earlier round is as a
 * round begins: nobody has to wait until all have been set. */
typedef struct WorkShare {
    _Alignas(64) _Atomic uint64_t left;
} WorkShare;

/* One worker's view of one piece of work, of `total` units. */
typedef struct Sharing {
    WorkShare *shares; /* of all workers */
    int index, count, whose;
    uint32_t round;
    int total, chunk, n_chunks;
    int first, end; /* the units that were taken last */
} Sharing;

/* Between two barriers one piece of work is shared out, by all workers, which count the rounds alike. A chunk is as
 * many units as take `chunk` of them, or more where there are too many. */
Sharing sharing_begin(WorkShare *shares, int index, int count, uint32_t round, int total, int chunk);

/* Takes some more units: a worker's own from the front, so that they are one stream through memory, then those of
 * others, from the back. False: there are none. */
bool sharing_take(Sharing *sharing);

#endif
