// The one formula of a second moment, of v and of the running means, for a double or lanes of them.

template <class X>
ADAFACTOR_INLINE X all_lanes(double x) {
    if constexpr (std::is_same_v<X, double>)
        return x;
    else
        return broadcast(x);
}

template <class X>
struct RunningMean {
    X beta2, rest, eps;

    explicit RunningMean(const Moment& moment)
        : beta2(all_lanes<X>(moment.beta2)),
          rest(all_lanes<X>(1 - moment.beta2)),
          eps(all_lanes<X>(moment.eps)) {}

    // mean_sq: of grad times the scale, as it is now.
    ADAFACTOR_INLINE X operator()(const X& old, const X& mean_sq) const {
        return beta2 * old + rest * (mean_sq + eps);
    }
};
