/* Pillow's bilinear resize of 8-bit RGB with antialiasing, bit for bit: one pass over columns, one over rows.
 *
 * An output value is the sum of its window's values, each times a weight of 22 fractional bits, rounded and clipped.
 * Where SIMD multiplies 16 bits by 16, a weight of up to 2^22 goes as two halves, high * 2^15 + low: sums of either may
 * wrap around, their total is below 2^31 and right. A pixel is four bytes, of which the last means nothing.
 */
#include <math.h>
#include <stdlib.h>

#include "library.h"

#define FRACTION 22
#define HALF (1 << (FRACTION - 1))
#define LOW_BITS 15
#define MAX_SIDE 65536 /* keeps every sum, rounding errors of the weights included, below 2^31 */

/* Which inputs an output is made of: `taps` weights from input `starts[i]` on; what is outside its window weighs 0. */
struct windows {
    size_t inputs, outputs, taps;
    size_t *starts;
    int32_t *weights;
    int16_t *halves; /* of every two weights: low, low, high, high */
};

static size_t clipped(double position, size_t limit)
{
    return position < 0 ? 0 : position > (double)limit ? limit : (size_t)position;
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static void free_windows(struct windows *windows)
{
    free(windows->starts);
    free(windows->weights);
    free(windows->halves);
}

/* Makes the windows of one direction, with a multiple of `step` taps, which is even. Returns 0 or why it could not. */
static int32_t make_windows(struct windows *made, int32_t num_inputs, int32_t num_outputs, size_t step)
{
    if (num_inputs < 1 || num_inputs > MAX_SIDE || num_outputs < 1 || num_outputs > MAX_SIDE)
        return OUT_OF_RANGE;
    size_t inputs = (size_t)num_inputs, outputs = (size_t)num_outputs, longest = 1;
    double scale = (double)num_inputs / num_outputs, radius = scale < 1.0 ? 1.0 : scale, shrink = 1.0 / radius;
    for (size_t i = 0; i < outputs; i++) {
        double center = ((double)i + 0.5) * scale;
        size_t count = clipped(center + radius + 0.5, inputs) - clipped(center - radius + 0.5, inputs);
        longest = count > longest ? count : longest;
    }
    size_t taps = (longest + step - 1) / step * step;
    *made = (struct windows){
        .inputs = inputs,
        .outputs = outputs,
        .taps = taps,
        .starts = malloc(outputs * sizeof(size_t)),
        .weights = calloc(outputs * taps, sizeof(int32_t)),
        .halves = calloc(outputs * taps, 2 * sizeof(int16_t)),
    };
    if (!made->starts || !made->weights || !made->halves) {
        free_windows(made);
        return NO_MEMORY;
    }
    for (size_t i = 0; i < outputs; i++) {
        double center = ((double)i + 0.5) * scale, total = 0.0;
        size_t first = clipped(center - radius + 0.5, inputs), end = clipped(center + radius + 0.5, inputs);
        for (size_t input = first; input < end; input++)
            total += triangle(((double)input - center + 0.5) * shrink);
        /* Where there are as many inputs as taps, no tap is beyond the last. */
        size_t start = first + taps <= inputs ? first : inputs > taps ? inputs - taps : 0;
        made->starts[i] = start;
        for (size_t input = first; input < end; input++) {
            double share = triangle(((double)input - center + 0.5) * shrink) / total;
            int32_t weight = (int32_t)(0.5 + share * (1 << FRACTION));
            size_t tap = i * taps + input - start;
            int16_t *halves = made->halves + tap / 2 * 4 + tap % 2;
            made->weights[tap] = weight;
            halves[0] = (int16_t)(weight & ((1 << LOW_BITS) - 1));
            halves[2] = (int16_t)(weight >> LOW_BITS);
        }
    }
    return 0;
}

static size_t used_taps(const struct windows *windows)
{
    return windows->taps < windows->inputs ? windows->taps : windows->inputs;
}

static uint8_t rounded(int32_t sum)
{
    int32_t value = sum >> FRACTION;
    return value > 255 ? 255 : (uint8_t)value;
}

static void columns_portable(const struct windows *windows, const uint8_t *pixels, size_t rows, uint8_t *narrowed)
{
    size_t taps = used_taps(windows);
    for (size_t row = 0; row < rows; row++, pixels += 4 * windows->inputs) {
        for (size_t i = 0; i < windows->outputs; i++, narrowed += 4) {
            const uint8_t *from = pixels + 4 * windows->starts[i];
            const int32_t *weights = windows->weights + i * windows->taps;
            int32_t red = HALF, green = HALF, blue = HALF;
            for (size_t tap = 0; tap < taps; tap++) {
                red += from[4 * tap] * weights[tap];
                green += from[4 * tap + 1] * weights[tap];
                blue += from[4 * tap + 2] * weights[tap];
            }
            narrowed[0] = rounded(red);
            narrowed[1] = rounded(green);
            narrowed[2] = rounded(blue);
            narrowed[3] = 0;
        }
    }
}

#define STRETCH 256 /* bytes of a line whose sums stay in the first cache */

static void rows_portable(const struct windows *windows, const uint8_t *pixels, size_t width, uint8_t *lowered)
{
    size_t line = 4 * width, taps = used_taps(windows);
    for (size_t i = 0; i < windows->outputs; i++, lowered += line) {
        const uint8_t *from = pixels + line * windows->starts[i];
        const int32_t *weights = windows->weights + i * windows->taps;
        for (size_t begin = 0; begin < line; begin += STRETCH) {
            size_t count = line - begin < STRETCH ? line - begin : STRETCH;
            int32_t sums[STRETCH];
            for (size_t k = 0; k < count; k++)
                sums[k] = HALF;
            for (size_t tap = 0; tap < taps; tap++)
                for (size_t k = 0; k < count; k++)
                    sums[k] += from[line * tap + begin + k] * weights[tap];
            for (size_t k = 0; k < count; k++)
                lowered[begin + k] = rounded(sums[k]);
        }
    }
}

static inline void planes_of(const uint8_t *pixels, size_t count, uint8_t *planes)
{
    for (size_t i = 0; i < count; i++)
        for (size_t channel = 0; channel < 3; channel++)
            planes[channel * count + i] = pixels[4 * i + channel];
}

#if X86
#include <immintrin.h>
#include <string.h>

#define TARGET_AVX2 __attribute__((target("avx2")))

TARGET_AVX2 static inline __m256i joined(__m256i low, __m256i high)
{
    return _mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS));
}

/* Adds what four taps of one line give: the first two in the lower lane, the others in the upper, by channel. */
TARGET_AVX2 static inline void add_taps(__m256i sums[2], const uint8_t *pixels, __m256i low, __m256i high)
{
    const __m256i by_channel = _mm256_setr_epi8(
        0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,
        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
    __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixels));
    four = _mm256_shuffle_epi8(four, by_channel);
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(four, low));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(four, high));
}

TARGET_AVX2 static inline __m128i pixel(const __m256i sums[2])
{
    __m256i both = joined(sums[0], sums[1]);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    return _mm_srli_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), FRACTION);
}

/* Takes four lines at once, which share the weights. Needs a multiple of 4 taps, and as many inputs. */
TARGET_AVX2 static void columns_avx2(
    const struct windows *windows, const uint8_t *pixels, size_t rows, uint8_t *narrowed)
{
    for (size_t row = 0; row < rows; row += 4) {
        const uint8_t *lines[4];
        uint8_t *narrow[4];
        for (size_t k = 0; k < 4; k++) { /* the last line again where there are no more */
            size_t number = row + k < rows ? row + k : rows - 1;
            lines[k] = pixels + 4 * windows->inputs * number;
            narrow[k] = narrowed + 4 * windows->outputs * number;
        }
        const int16_t *halves = windows->halves;
        for (size_t i = 0; i < windows->outputs; i++) {
            __m256i a[2] = {0}, b[2] = {0}, c[2] = {0}, d[2] = {0};
            size_t at = 4 * windows->starts[i];
            for (size_t tap = 0; tap < windows->taps; tap += 4, halves += 8, at += 16) {
                __m256i four = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)halves));
                __m256i by_lane = _mm256_permute4x64_epi64(four, 0x50);
                __m256i low = _mm256_shuffle_epi32(by_lane, 0x00), high = _mm256_shuffle_epi32(by_lane, 0x55);
                add_taps(a, lines[0] + at, low, high);
                add_taps(b, lines[1] + at, low, high);
                add_taps(c, lines[2] + at, low, high);
                add_taps(d, lines[3] + at, low, high);
            }
            uint32_t values[4];
            _mm_storeu_si128((__m128i *)values, _mm_packus_epi16(
                _mm_packs_epi32(pixel(a), pixel(b)), _mm_packs_epi32(pixel(c), pixel(d))));
            for (size_t k = 0; k < 4; k++)
                memcpy(narrow[k] + 4 * i, values + k, 4);
        }
    }
}

/* Takes four columns at once. Needs an even number of taps, and 4 columns. */
TARGET_AVX2 static void rows_avx2(const struct windows *windows, const uint8_t *pixels, size_t width, uint8_t *lowered)
{
    const __m256i half = _mm256_set1_epi32(HALF);
    size_t line = 4 * width;
    const uint8_t *last = pixels + line * (windows->inputs - 1);
    for (size_t i = 0; i < windows->outputs; i++, lowered += line) {
        const uint8_t *lines = pixels + line * windows->starts[i];
        const int16_t *halves = windows->halves + 2 * i * windows->taps;
        for (size_t next = 0; next < line; next += 16) {
            size_t at = next + 16 <= line ? next : line - 16; /* some columns again where there are no four more */
            __m256i low[2] = {half, half}, high[2] = {0};
            for (size_t tap = 0; tap < windows->taps; tap += 2) {
                const uint8_t *even = lines + line * tap, *odd = even < last ? even + line : last;
                __m128i a = _mm_loadu_si128((const __m128i *)(even + at));
                __m128i b = _mm_loadu_si128((const __m128i *)(odd + at));
                __m256i ab[2] = {
                    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b))};
                int32_t two[2];
                memcpy(two, halves + 2 * tap, sizeof two);
                for (size_t k = 0; k < 2; k++) {
                    low[k] = _mm256_add_epi32(low[k], _mm256_madd_epi16(ab[k], _mm256_set1_epi32(two[0])));
                    high[k] = _mm256_add_epi32(high[k], _mm256_madd_epi16(ab[k], _mm256_set1_epi32(two[1])));
                }
            }
            __m256i words = _mm256_packs_epi32(
                _mm256_srli_epi32(joined(low[0], high[0]), FRACTION),
                _mm256_srli_epi32(joined(low[1], high[1]), FRACTION));
            words = _mm256_permute4x64_epi64(words, 0xd8);
            _mm_storeu_si128((__m128i *)(lowered + at), _mm_packus_epi16(
                _mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
    }
}

TARGET_AVX2 static void planes_avx2(const uint8_t *pixels, size_t count, uint8_t *planes)
{
    planes_of(pixels, count, planes);
}
#endif

int32_t cibhash_resize_columns(
    const uint8_t *pixels, int32_t width, int32_t rows, int32_t size, uint8_t *narrowed, int32_t level)
{
    struct windows windows;
    int32_t trouble = rows < 1 ? OUT_OF_RANGE : make_windows(&windows, width, size, 4);
    if (trouble)
        return trouble;
#if X86
    if (has(AVX2, level) && windows.taps <= windows.inputs)
        columns_avx2(&windows, pixels, (size_t)rows, narrowed);
    else
#endif
        columns_portable(&windows, pixels, (size_t)rows, narrowed);
    free_windows(&windows);
    return 0;
}

int32_t cibhash_resize_rows(
    const uint8_t *pixels, int32_t height, int32_t width, int32_t size, uint8_t *lowered, int32_t level)
{
    struct windows windows;
    int32_t trouble = width < 1 ? OUT_OF_RANGE : make_windows(&windows, height, size, 2);
    if (trouble)
        return trouble;
#if X86
    if (has(AVX2, level) && width >= 4)
        rows_avx2(&windows, pixels, (size_t)width, lowered);
    else
#endif
        rows_portable(&windows, pixels, (size_t)width, lowered);
    free_windows(&windows);
    return 0;
}

int32_t cibhash_planes(const uint8_t *pixels, int64_t count, uint8_t *planes, int32_t level)
{
    if (count < 0)
        return OUT_OF_RANGE;
#if X86
    if (has(AVX2, level))
        planes_avx2(pixels, (size_t)count, planes);
    else
#endif
        planes_of(pixels, (size_t)count, planes);
    return 0;
}
