// The random bits of stochastic rounding.

// Philox2x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), of eight
// counters at a time: {number of the block, stream}. A block is two words.
using Counters = VectorOf<std::uint64_t, kVectorBytes>::Aligned;

ADAFACTOR_INLINE Counters low_products(const Counters& x, const Counters& y) {
#if defined(__AVX512F__)
    return reinterpret_cast<Counters>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y)));
#elif defined(__AVX2__)
    return reinterpret_cast<Counters>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y)));
#elif defined(__SSE2__)
    return reinterpret_cast<Counters>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(y)));
#else
    return (x & 0xffffffffu) * (y & 0xffffffffu);
#endif
}

constexpr std::uint64_t kBlockNumbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};

// Elements that one draw of eight blocks is for: four for each word of 32 bits.
constexpr std::size_t kDrawn = 64;

// The words of elements first[r] to first[r] + 63, which are multiples of 64. Several runs at once:
// each is one long chain.
template <std::size_t R>
ADAFACTOR_INLINE void draw(const Rounding& rounding, const std::uint64_t (&first)[R],
                           Words (&words)[R][kParts]) {
    const Counters multiplier = Counters{} + 0xd256d193u;
    ADAFACTOR_PARTS {
        Counters left[R], right[R];
        for (std::size_t r = 0; r < R; ++r) {
            const std::uint64_t block = first[r] / kDrawn * 8;
            __builtin_memcpy(&left[r], kBlockNumbers + part * (8 / kParts), sizeof(left[r]));
            left[r] += block & 0xffffffffu;
            right[r] = Counters{} + (rounding.stream + (block >> 32));
        }
        std::uint32_t key = rounding.key;
        for (int round = 0; round < 10; ++round) {
            for (std::size_t r = 0; r < R; ++r) {
                // The low 32 bits of each lane count.
                const Counters product = low_products(left[r], multiplier);
                left[r] = (product >> 32) ^ right[r] ^ std::uint64_t(key);
                right[r] = product;
            }
            key += 0x9e3779b9u;
        }
        for (std::size_t r = 0; r < R; ++r)
            words[r][part] = reinterpret_cast<Words>((left[r] & 0xffffffffu) | right[r] << 32);
    }
}

// Of the four vectors of elements that share words, what the k-th is rounded by: 16 bits, all of
// them random. The upper eight are its own, the lower eight another's upper ones: every element's
// mean is exact, and two elements have something in common once in 256 times.
ADAFACTOR_INLINE Words sixteen_bits(const Words& words, std::size_t k) {
    switch (k) {
        case 0:
            return words & 0xffffu;
        case 1:
            return words >> 16;
        case 2:
            return words >> 8 & 0xffffu;
        default:
            return words >> 24 | (words << 8 & 0xff00u);
    }
}

// How the first moment is rounded: param's bits stay what they are without it.
ADAFACTOR_INLINE Rounding for_moment(Rounding rounding) {
    rounding.key ^= 0x85ebca6bu;
    return rounding;
}

// The same of each part, for the k-th of the four groups of lanes that a draw is for.
ADAFACTOR_INLINE const Words* random_words(const Words (&drawn)[kParts], std::size_t k,
                                           Words (&words)[kParts]) {
    ADAFACTOR_PARTS words[part] = sixteen_bits(drawn[part], k);
    return words;
}
