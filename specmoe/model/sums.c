/* CRC-32 of records, the numbers of zlib's, ten times as fast: where the processor multiplies
 * polynomials, 64 bytes are folded into the next 64 at once. (Gopal and others, "Fast CRC Computation
 * for Generic Polynomials Using PCLMULQDQ", Intel 2009: method and constants.)
 */
#include <stdint.h>
#include <string.h>

static uint32_t by_bytes(uint32_t state, const uint8_t *bytes, long count) {
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
        0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    for (long i = 0; i < count; i++) {
        state ^= bytes[i];
        state = state >> 4 ^ table[state & 15];
        state = state >> 4 ^ table[state & 15];
    }
    return state;
}

#if defined(__PCLMUL__) && defined(__SSE2__)
#include <immintrin.h>

enum { FAST = 1 };

static inline __m128i fold(__m128i state, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(state, by, 0x00);
    return _mm_xor_si128(_mm_xor_si128(low, _mm_clmulepi64_si128(state, by, 0x11)), next);
}

static uint32_t sum(uint32_t state, const uint8_t *bytes, long count) {
    if (count < 64) return by_bytes(state, bytes, count);
    const __m128i *from = (const __m128i *)bytes;
    const __m128i by_four = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
    const __m128i by_one = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    __m128i a = _mm_xor_si128(_mm_loadu_si128(from), _mm_cvtsi32_si128((int)state));
    __m128i b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
    __m128i d = _mm_loadu_si128(from + 3);
    for (from += 4, count -= 64; count >= 64; from += 4, count -= 64) {
        a = fold(a, by_four, _mm_loadu_si128(from));
        b = fold(b, by_four, _mm_loadu_si128(from + 1));
        c = fold(c, by_four, _mm_loadu_si128(from + 2));
        d = fold(d, by_four, _mm_loadu_si128(from + 3));
    }
    a = fold(fold(fold(a, by_one, b), by_one, c), by_one, d);
    for (; count >= 16; from++, count -= 16) a = fold(a, by_one, _mm_loadu_si128(from));
    uint8_t rest[16];
    _mm_storeu_si128((__m128i *)rest, a);
    return by_bytes(by_bytes(0, rest, 16), (const uint8_t *)from, count);
}
#else
enum { FAST = 0 };

static uint32_t sum(uint32_t state, const uint8_t *bytes, long count) {
    return by_bytes(state, bytes, count);
}
#endif

/* ---- what Python calls ---- */

/* Whether this is faster than zlib. */
int specmoe_sums_fast(void) { return FAST; }

/* The CRC-32 of what had ``crc`` so far (0: nothing), followed by ``from``; copied to ``into`` (NULL:
 * nowhere) while it is in the cache. */
uint32_t specmoe_sum(const void *from, void *into, long count, uint32_t crc) {
    enum { BLOCK = 1 << 14 };
    uint32_t state = ~crc;
    for (long at = 0; at < count; at += BLOCK) {
        long size = count - at < BLOCK ? count - at : BLOCK;
        const uint8_t *block = (const uint8_t *)from + at;
        state = sum(state, block, size);
        if (into) memcpy((uint8_t *)into + at, block, size);
    }
    return ~state;
}
