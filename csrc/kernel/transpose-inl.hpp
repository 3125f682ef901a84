// Runs of several small matrices, one behind the other, to lanes, where each lane has a matrix of
// its own, and back: squares of eight by eight elements are transposed in registers.

template <class T>
using MatrixLanes = Lanes<T, kLanesOfSmall>;

// Exchanges the lanes with bit `half` of x with those without of y.
template <std::size_t half, class Vector, std::size_t... k>
ADAFACTOR_INLINE void exchange(Vector& x, Vector& y, std::index_sequence<k...>) {
    constexpr std::size_t width = sizeof...(k);
    const Vector first = lanes_of<((k & half) != 0 ? width + k - half : k)...>(x, y);
    y = lanes_of<((k & half) != 0 ? width + k : k + half)...>(x, y);
    x = first;
}

template <std::size_t half, class Vector, std::size_t width>
ADAFACTOR_INLINE void transpose(Vector (&x)[width]) {
    if constexpr (half > 0) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < width; ++r)
            if ((r & half) == 0)
                exchange<half>(x[r], x[r + half], std::make_index_sequence<width>());
        transpose<half / 2>(x);
    }
}

template <class T>
ADAFACTOR_INLINE void transpose(MatrixLanes<T> (&x)[kLanesOfSmall]) {
    constexpr std::size_t width = kLanesOfSmall / kParts;
    MatrixLanes<T> y[kLanesOfSmall];
#pragma GCC unroll 4
    for (std::size_t a = 0; a < kParts; ++a)
#pragma GCC unroll 4
        for (std::size_t b = 0; b < kParts; ++b) {
            typename MatrixLanes<T>::Vector square[width];
#pragma GCC unroll 8
            for (std::size_t r = 0; r < width; ++r) square[r] = x[a * width + r].part[b];
            transpose<width / 2>(square);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < width; ++r) y[b * width + r].part[a] = square[r];
        }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kLanesOfSmall; ++r) x[r] = y[r];
}

// Calls body(k, load, store) for squares that cover `size` elements of each matrix, from element k
// on: load(from) and store(to, x) are of as many as the square has. The last square begins early
// enough to be whole where it can.
template <class T, class Body>
ADAFACTOR_INLINE void for_squares(std::size_t size, const Body& body) {
    constexpr std::size_t n = kLanesOfSmall;
    if (size < n) {
        body(
            0, size,
            [=](const T* from)
                __attribute__((always_inline)) { return load_first<T, n>(from, size); },
            [=](T* to, const MatrixLanes<T>& x)
                __attribute__((always_inline)) { store_first(to, x, size); });
        return;
    }
    for (std::size_t k = 0;; k = k + 2 * n <= size ? k + n : size - n) {
        body(
            k, n, [](const T* from) __attribute__((always_inline)) { return load<T, n>(from); },
            [](T* to, const MatrixLanes<T>& x) __attribute__((always_inline)) { store(to, x); });
        if (k + n == size) return;
    }
}

// Element k of matrix `lane` goes from from[lane * size + k] to to[k * kLanesOfSmall + lane]. Lanes
// behind the n-th are the first again.
template <class T>
[[gnu::noinline]] void copy_to_lanes(const T* from, std::size_t size, std::size_t n, T* to) {
    for_squares<T>(size, [=](std::size_t k, std::size_t some, const auto& load_row, const auto&)
                             __attribute__((always_inline)) {
                                 MatrixLanes<T> x[kLanesOfSmall];
#pragma GCC unroll 8
                                 for (std::size_t lane = 0; lane < kLanesOfSmall; ++lane)
                                     x[lane] = load_row(from + (lane < n ? lane : 0) * size + k);
                                 transpose(x);
#pragma GCC unroll 8
                                 for (std::size_t r = 0; r < kLanesOfSmall; ++r)
                                     if (r < some) store(to + (k + r) * kLanesOfSmall, x[r]);
                             });
}

template <class T>
[[gnu::noinline]] void copy_from_lanes(const T* from, std::size_t size, std::size_t n, T* to) {
    for_squares<T>(size, [=](std::size_t k, std::size_t some, const auto&,
                             const auto& store_row) __attribute__((always_inline)) {
        MatrixLanes<T> x[kLanesOfSmall];
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kLanesOfSmall; ++r)
            x[r] = load<T, kLanesOfSmall>(from + (k + (r < some ? r : 0)) * kLanesOfSmall);
        transpose(x);
#pragma GCC unroll 8
        for (std::size_t lane = 0; lane < kLanesOfSmall; ++lane)
            if (lane < n) store_row(to + lane * size + k, x[lane]);
    });
}

// The lanes of n matrices of `size` elements: where the matrices lie, if that is in lanes, or in
// the buffer.
template <class T>
ADAFACTOR_INLINE T* in_lanes(T* from, std::size_t size, std::size_t n,
                             std::remove_const_t<T>* buffer) {
    if (size == 1 && n == kLanesOfSmall) return from;
    copy_to_lanes<std::remove_const_t<T>>(from, size, n, buffer);
    return buffer;
}

// Puts lanes back, unless they lie there.
template <class T>
ADAFACTOR_INLINE void put_back(const T* lanes, std::size_t size, std::size_t n, T* to) {
    if (lanes != to) copy_from_lanes(lanes, size, n, to);
}
