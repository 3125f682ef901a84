// Sixteen floats or eight doubles, whatever the width of the machine's registers.
//
// Every instruction set adds in the order of these virtual lanes, so all give the same bits. They
// are kept as several vectors of the set's own width (ADAFACTOR_VECTOR_BYTES), because compilers
// spill vectors wider than the registers. Included once per instruction set, inside its namespace.

constexpr std::size_t kVectorBytes = ADAFACTOR_VECTOR_BYTES;
constexpr std::size_t kParts = 64 / kVectorBytes;

#define ADAFACTOR_INLINE inline __attribute__((always_inline))
#define ADAFACTOR_PARTS _Pragma("GCC unroll 4") for (std::size_t part = 0; part < kParts; ++part)

// `Aligned` vectors live in registers; `Unaligned` ones are read and written at any address.
template <class T, std::size_t bytes>
struct VectorOf {
    typedef T Aligned __attribute__((vector_size(bytes)));
    typedef T Unaligned __attribute__((vector_size(bytes), aligned(1), may_alias));
};

template <class T>
struct Lanes {
    static constexpr std::size_t kCount = 64 / sizeof(T);
    using Vector = typename VectorOf<T, kVectorBytes>::Aligned;
    Vector part[kParts];
};

template <class T>
constexpr std::size_t kLanes = Lanes<T>::kCount;

template <class T>
ADAFACTOR_INLINE Lanes<T> broadcast(T value) {
    Lanes<T> x;
    ADAFACTOR_PARTS x.part[part] = typename Lanes<T>::Vector{} + value;
    return x;
}

// The memory of one part of Lanes<Acc> whose elements are stored as T.
template <class T, class Acc>
using Stored = VectorOf<T, kVectorBytes / sizeof(Acc) * sizeof(T)>;

template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> load(const T* from) {
    constexpr std::size_t n = kVectorBytes / sizeof(Acc);
    Lanes<Acc> x;
    ADAFACTOR_PARTS {
        const typename Stored<T, Acc>::Aligned stored =
            *reinterpret_cast<const typename Stored<T, Acc>::Unaligned*>(from + part * n);
        x.part[part] = __builtin_convertvector(stored, typename Lanes<Acc>::Vector);
    }
    return x;
}

template <class Acc, class T>
ADAFACTOR_INLINE void store(T* to, const Lanes<Acc>& x) {
    constexpr std::size_t n = kVectorBytes / sizeof(Acc);
    ADAFACTOR_PARTS {
        *reinterpret_cast<typename Stored<T, Acc>::Unaligned*>(to + part * n) =
            __builtin_convertvector(x.part[part], typename Stored<T, Acc>::Aligned);
    }
}

// The last elements of a run, fewer than a full group, through the same lanes; the others are 0.
template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> load_first(const T* from, std::size_t n) {
    alignas(64) T padded[kLanes<Acc>] = {};
    __builtin_memcpy(padded, from, n * sizeof(T));
    return load<Acc>(padded);
}

template <class Acc, class T>
ADAFACTOR_INLINE void store_first(T* to, const Lanes<Acc>& x, std::size_t n) {
    alignas(64) T padded[kLanes<Acc>];
    store(padded, x);
    __builtin_memcpy(to, padded, n * sizeof(T));
}

#define ADAFACTOR_LANEWISE(op)                                                    \
    template <class T>                                                            \
    ADAFACTOR_INLINE Lanes<T> operator op(const Lanes<T>& a, const Lanes<T>& b) { \
        Lanes<T> c;                                                               \
        ADAFACTOR_PARTS c.part[part] = a.part[part] op b.part[part];              \
        return c;                                                                 \
    }
ADAFACTOR_LANEWISE(+)
ADAFACTOR_LANEWISE(-)
ADAFACTOR_LANEWISE(*)
ADAFACTOR_LANEWISE(/)
#undef ADAFACTOR_LANEWISE

ADAFACTOR_INLINE Lanes<double> square_root(const Lanes<double>& x) {
    Lanes<double> y;
    ADAFACTOR_PARTS {
        for (std::size_t k = 0; k < kVectorBytes / sizeof(double); ++k)
            y.part[part][k] = __builtin_sqrt(x.part[part][k]);
    }
    return y;
}

// The vector with lane k + half in lane k; what the other half holds does not matter.
template <std::size_t half, class Vector, std::size_t... k>
ADAFACTOR_INLINE Vector upper_half(const Vector& x, std::index_sequence<k...>) {
    constexpr std::size_t n = sizeof...(k);
#ifdef __clang__
    return __builtin_shufflevector(x, x, ((k + half) % n)...);
#else
    using Index = std::conditional_t<sizeof(x[0]) == 4, std::int32_t, std::int64_t>;
    typedef Index Indices __attribute__((vector_size(sizeof(Vector))));
    return __builtin_shuffle(x, Indices{Index((k + half) % n)...});
#endif
}

template <std::size_t half, class Vector>
ADAFACTOR_INLINE auto sum_vector(const Vector& x) {
    if constexpr (half == 0) {
        return x[0];
    } else {
        constexpr std::size_t n = sizeof(Vector) / sizeof(x[0]);
        return sum_vector<half / 2>(x + upper_half<half>(x, std::make_index_sequence<n>{}));
    }
}

// Lane k is added to lane k + count/2, and so on by halves.
template <class T>
ADAFACTOR_INLINE T sum_lanes(Lanes<T> x) {
    for (std::size_t half = kParts / 2; half > 0; half /= 2)
        for (std::size_t part = 0; part < half; ++part) x.part[part] += x.part[part + half];
    return sum_vector<kVectorBytes / sizeof(T) / 2>(x.part[0]);
}

template <class T>
ADAFACTOR_INLINE T* row_of(const Block<T>& block, std::size_t i) {
    // Through an integer: in bytes, for const and mutable T alike.
    return reinterpret_cast<T*>(reinterpret_cast<std::intptr_t>(block.data) +
                                std::intptr_t(i) * block.stride);
}

template <class T, std::size_t R>
ADAFACTOR_INLINE void rows_of(const Block<T>& block, std::size_t i, T* (&row)[R]) {
    for (std::size_t r = 0; r < R; ++r) row[r] = row_of(block, i + r);
}
