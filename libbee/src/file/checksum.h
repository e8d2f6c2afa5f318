/* A hash of bytes, to find what damage or another content did to them; no defence against those who forge it. */
#ifndef BEE_CHECKSUM_H
#define BEE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from `seed`: the checksum of what came before, or 0. Bytes of which one 64-bit word differs never have the
 * same. */
uint64_t checksum(const void *bytes, size_t n, uint64_t seed);

#endif
