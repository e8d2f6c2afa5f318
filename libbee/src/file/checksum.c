#include "checksum.h"

#include <string.h>

/* One to one in both: a difference of one word cannot be lost again. The rotation brings the upper bits, which products
 * would only push out, back below. */
static uint64_t mixed(uint64_t lane, uint64_t word) {
    lane ^= word;
    return (lane << 29 | lane >> 35) * 0x9e3779b97f4a7c15u;
}

enum { LANES = 8 }; /* side by side, as a product takes several cycles */

static void mix_words(uint64_t *lanes, const uint8_t *at) {
    uint64_t words[LANES];
    memcpy(words, at, sizeof words);
    for (int i = 0; i < LANES; i++) lanes[i] = mixed(lanes[i], words[i]);
}

uint64_t checksum(const void *bytes, size_t n, uint64_t seed) {
    const uint8_t *at = bytes;
    uint64_t lanes[LANES], sum = mixed(seed, n);
    for (int i = 0; i < LANES; i++) lanes[i] = mixed(sum, (uint64_t)i);
    size_t left = n;
    for (; left >= 8 * LANES; left -= 8 * LANES, at += 8 * LANES) mix_words(lanes, at);
    if (left) {
        uint8_t rest[8 * LANES] = {0};
        memcpy(rest, at, left);
        mix_words(lanes, rest);
    }
    for (int i = 0; i < LANES; i++) sum = mixed(sum, lanes[i]);
    return sum ^ sum >> 32;
}
