/* Writes libbee/types/planar_books.h: the numbers that entries of grids have in the planar form (packed.h), and the
 * tables that their halves are looked up in.
 *
 *     cc -O2 -Ilibbee tests/golden/make_planar_books.c -lm -o make_planar_books
 *     ./make_planar_books > libbee/types/planar_books.h
 *
 * An entry's number is a byte and some more bits. The byte finds the digits of its second half; with its lowest bits
 * replaced by those more bits it finds those of its first half, in a table of 2^first_bits. What the two have in common
 * thus chooses a rectangle: some first halves, each of them with each of some second ones. Rectangles that cover a
 * grid are searched for by annealing, which takes a minute; the same random numbers find the same ones again. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "types/code_books.h"

#define ENTRY(e) e,
static const int iq3_s[] = {IQ3_S_BOOK(ENTRY)}, iq2_xs[] = {IQ2_XS_BOOK(ENTRY)}, iq2_s[] = {IQ2_S_BOOK(ENTRY)},
                 iq1[] = {IQ1_BOOK(ENTRY)};

typedef struct Book {
    const char *name;
    const int *entries;
    int n, digit_bits; /* of an entry */
    int more, first_bits;
} Book;

static const Book books[] = {
    {"IQ3_S", iq3_s, 512, 3, 2, 7},
    {"IQ2_XS", iq2_xs, 512, 2, 2, 7},
    {"IQ2_S", iq2_s, 1024, 2, 4, 7},
    {"IQ1", iq1, 2048, 2, 4, 8},
};

static const char head[] =
    "/* Made by tests/golden/make_planar_books.c from code_books.h. Of each book the digits of first halves and of\n"
    " * second ones, and its entries' numbers: a byte, and above it what replaces its lowest bits where the first "
    "half\n"
    " * is looked up. */\n"
    "#ifndef BEE_TYPES_PLANAR_BOOKS_H\n#define BEE_TYPES_PLANAR_BOOKS_H\n\n// clang-format off\n\n";

static unsigned long long state;

static unsigned next_random(void) { /* xorshift* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (unsigned)((state * 0x2545F4914F6CDD1Dull) >> 32);
}

enum { HALVES = 256 };

static int first[256], second[256];                              /* halves by their places */
static int wanted[HALVES][HALVES], covered_by[HALVES][HALVES];   /* first half, second half */
static int firsts[HALVES], n_firsts, seconds[HALVES], n_seconds; /* which ones there are */
static int covered;

static int half_bits(const Book *b) { return b->digit_bits == 3 ? 6 : 8; }

static void count(int one, int other, int by) {
    if (!wanted[one][other]) return;
    covered -= covered_by[one][other] > 0;
    covered_by[one][other] += by;
    covered += covered_by[one][other] > 0;
}

/* Places of the other table that go together with one of this. */
static int is_partner(const Book *b, int first_place, int second_place) {
    const int common = ((1 << b->first_bits) - 1) & ~((1 << b->more) - 1);
    return (first_place & common) == (second_place & common);
}

static void put(const Book *b, int in_second, int place, int half) {
    int *const at = in_second ? &second[place] : &first[place];
    const int n = in_second ? 1 << b->first_bits : 256;
    for (int other = 0; other < n; other++) {
        if (!(in_second ? is_partner(b, other, place) : is_partner(b, place, other))) continue;
        if (in_second)
            count(first[other], *at, -1), count(first[other], half, 1);
        else
            count(*at, second[other], -1), count(half, second[other], 1);
    }
    *at = half;
}

static int try_to_cover(const Book *b, unsigned seed) {
    const long steps = b->n > 1000 ? 30000000 : 60000000;
    state = seed * 0x9E3779B97F4A7C15ull;
    memset(covered_by, 0, sizeof covered_by);
    covered = 0;
    for (int i = 0; i < 1 << b->first_bits; i++) first[i] = firsts[next_random() % (unsigned)n_firsts];
    for (int i = 0; i < 256; i++) second[i] = seconds[next_random() % (unsigned)n_seconds];
    for (int i = 0; i < 1 << b->first_bits; i++)
        for (int j = 0; j < 256; j++)
            if (is_partner(b, i, j)) count(first[i], second[j], 1);
    for (long step = 0; step < steps && covered < b->n; step++) {
        const double temperature = 0.5 * pow(0.12 / 0.5, (double)step / (double)steps);
        const int n = 1 << b->first_bits, place = (int)(next_random() % (unsigned)(n + 256)), in_second = place >= n;
        const int at = in_second ? place - n : place, before = covered, old = in_second ? second[at] : first[at];
        put(b, in_second, at,
            in_second ? seconds[next_random() % (unsigned)n_seconds] : firsts[next_random() % (unsigned)n_firsts]);
        if (covered < before && exp((covered - before) / temperature) * 0x1p32 < next_random())
            put(b, in_second, at, old);
    }
    fprintf(stderr, "%s: %d of %d\n", b->name, covered, b->n);
    return covered == b->n;
}

static int number_of(const Book *b, int entry) {
    const int one = entry & ((1 << half_bits(b)) - 1), other = entry >> half_bits(b);
    for (int byte = 0; byte < 256; byte++)
        for (int more = 0; second[byte] == other && more < 1 << b->more; more++) {
            const int place = ((byte & ~((1 << b->more) - 1)) | more) & ((1 << b->first_bits) - 1);
            if (first[place] == one) return byte | more << 8;
        }
    abort();
}

static void print(const char *book, const char *name, const int *numbers, int n) {
    printf("#define %s_%s", book, name);
    for (int i = 0; i < n; i++) printf(i % 16 ? " %#x," : " \\\n    %#x,", (unsigned)numbers[i]);
    printf("\n\n");
}

/* Digits of three bits are written as nibbles. */
static int digits_of(const Book *b, int half) { return b->digit_bits == 3 ? (half & 7) | half >> 3 << 4 : half; }

int main(void) {
    fputs(head, stdout);
    for (size_t k = 0; k < sizeof books / sizeof *books; k++) {
        const Book *b = &books[k];
        int numbers[2048];
        memset(wanted, 0, sizeof wanted);
        for (int i = 0; i < b->n; i++)
            wanted[b->entries[i] & ((1 << half_bits(b)) - 1)][b->entries[i] >> half_bits(b)] = 1;
        n_firsts = n_seconds = 0;
        for (int half = 0; half < HALVES; half++) {
            int is_first = 0, is_second = 0;
            for (int other = 0; other < HALVES; other++)
                is_first |= wanted[half][other], is_second |= wanted[other][half];
            if (is_first) firsts[n_firsts++] = half;
            if (is_second) seconds[n_seconds++] = half;
        }
        for (unsigned seed = 1; !try_to_cover(b, seed); seed++) {
        }
        for (int i = 0; i < b->n; i++) numbers[i] = number_of(b, b->entries[i]);
        for (int i = 0; i < 256; i++) second[i] = digits_of(b, second[i]);
        for (int i = 0; i < 1 << b->first_bits; i++) first[i] = digits_of(b, first[i]);
        print(b->name, "FIRST", first, 1 << b->first_bits);
        print(b->name, "SECOND", second, 256);
        print(b->name, "NUMBERS", numbers, b->n);
    }
    printf("// clang-format on\n\n#endif\n");
    return 0;
}
