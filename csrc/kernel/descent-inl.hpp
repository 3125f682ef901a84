// How u is formed from a gradient, and what becomes of param by it: struct Factors and Descent,
// lane by lane.

// What is added to and compared with the root of V, in the direct form.
template <class Acc>
struct Root {
    Lanes<Acc> eps, floor;

    explicit Root(const Factors& factors)
        : eps(broadcast(Acc(factors.eps_root))), floor(broadcast(Acc(factors.root_floor))) {}
};

template <class Acc>
ADAFACTOR_INLINE Lanes<Acc> direct_u(const Lanes<Acc>& g, const Lanes<Acc>& row,
                                     const Lanes<Acc>& col, const Root<Acc>& root) {
    return g / at_least(root.floor, row * col + root.eps);
}

// x = weight u, from grad and the factors of its row and column.
template <bool separable, class Acc>
struct WeightedU {
    Root<Acc> root;
    Lanes<Acc> weight;

    WeightedU(const Factors& factors, const Descent& descent)
        : root(factors), weight(broadcast(Acc(descent.weight))) {}

    ADAFACTOR_INLINE Lanes<Acc> operator()(const Lanes<Acc>& g, const Lanes<Acc>& row,
                                           const Lanes<Acc>& col) const {
        if constexpr (separable) return g * (row * col);
        return weight * direct_u(g, row, col, root);
    }
};

// The kinds are: neither decay nor momentum, decay alone, momentum.
enum class DescentKind { plain, decayed, with_momentum };

template <DescentKind kind>
using Kind = std::integral_constant<DescentKind, kind>;

// Calls body(the kind, as a type).
template <class Body>
ADAFACTOR_INLINE auto with_kind(const Descent& descent, const Block& m, const Body& body) {
    if (m.format != Format::none) return body(Kind<DescentKind::with_momentum>());
    if (descent.decay != 0) return body(Kind<DescentKind::decayed>());
    return body(Kind<DescentKind::plain>());
}

// The new param, from the old one and x; m becomes the new first moment.
template <DescentKind kind, class Acc, std::size_t n = kLanes<Acc>>
struct NewParam {
    Lanes<Acc, n> decay, beta1, rate;

    explicit NewParam(const Descent& descent)
        : decay(broadcast<Acc, n>(Acc(descent.decay))),
          beta1(broadcast<Acc, n>(Acc(descent.beta1))),
          rate(broadcast<Acc, n>(Acc(descent.rate))) {}

    ADAFACTOR_INLINE Lanes<Acc, n> operator()(const Lanes<Acc, n>& old, const Lanes<Acc, n>& x,
                                              Lanes<Acc, n>& m) const {
        if constexpr (kind == DescentKind::plain) return old - x;
        if constexpr (kind == DescentKind::decayed) return old - (x + decay * old);
        m = beta1 * m + x;
        return old - (rate * m + decay * old);
    }
};
