#include "engine/walk_choice.hpp"

#include <algorithm>
#include <atomic>

namespace adafactor {
namespace {

// Arrays of more bytes are taken to come from memory: more than a few cores' share of a cache.
constexpr std::size_t kCachedBytes = std::size_t(24) << 20;

// Pairs of neighbouring pieces, one walked each way, that a choice is made from. Their median
// counts: a busy neighbour, a page that is not mapped yet or what another sweep left in the caches
// disturbs both of a pair, or few pairs.
constexpr std::size_t kPairs = 32;
constexpr std::size_t kLeastPieces = 5;  // of a sweep that is timed

constexpr const char* kNames[] = {"side_by_side", "one_by_one"};

enum class State { unknown, side_by_side, one_by_one };

State state_of(Walk walk) {
    return walk == Walk::side_by_side ? State::side_by_side : State::one_by_one;
}

Walk walk_of(State state) {
    return state == State::side_by_side ? Walk::side_by_side : Walk::one_by_one;
}

// What has been timed of one sweep from one place. Whoever comes while another thread is adding to
// it leaves it: there will be more steps.
class Trials {
public:
    State state() const { return state_.load(std::memory_order_relaxed); }

    // pair(k): of the k-th pair, side_by_side's time divided by one_by_one's, or 0 for none.
    template <class Pair>
    void add(std::size_t n, const Pair& pair) {
        if (is_busy_.test_and_set(std::memory_order_acquire)) return;
        for (std::size_t k = 0; k < n && state() == State::unknown; ++k) {
            const double ratio = pair(k);
            if (ratio == 0) continue;
            ratios_[n_ratios_++] = ratio;
            if (n_ratios_ == kPairs) choose();
        }
        is_busy_.clear(std::memory_order_release);
    }

private:
    void choose() {
        double* const median = ratios_ + kPairs / 2;
        std::nth_element(ratios_, median, ratios_ + kPairs);
        state_ = *median > 1 ? State::one_by_one : State::side_by_side;
    }

    std::atomic<State> state_{State::unknown};
    std::atomic_flag is_busy_ = ATOMIC_FLAG_INIT;
    std::size_t n_ratios_ = 0;
    double ratios_[kPairs];
};

Trials trials[kPlaces][kSweeps];
std::atomic<State> forced{State::unknown};

Trials& trials_of(Sweep sweep, Place place) {
    return trials[std::size_t(place)][std::size_t(sweep)];
}

// Measured: rows side by side on Intel's Sapphire Rapids; on AMD's Zen 4 and Zen 5 one by one,
// except where a gradient is measured in cache. bench/notes.md
Walk walk_of_vendor(Sweep sweep, Place place) {
#ifdef ADAFACTOR_X86_64
    __builtin_cpu_init();
    if (__builtin_cpu_is("intel")) return Walk::side_by_side;
#endif
    return sweep == Sweep::measure && place == Place::cache ? Walk::side_by_side : Walk::one_by_one;
}

KnownWalk known_walk(Sweep sweep, Place place) {
    const State state = trials_of(sweep, place).state();
    if (state == State::unknown) return {walk_of_vendor(sweep, place), false};
    return {walk_of(state), true};
}

}  // namespace

Place place_of(std::size_t bytes) { return bytes > kCachedBytes ? Place::memory : Place::cache; }

WalkedSweep::WalkedSweep(Sweep sweep, Place place) : sweep_(sweep), place_(place) {
    const State state = forced;
    walk_ = state == State::unknown ? known_walk(sweep, place).walk : walk_of(state);
}

void WalkedSweep::allocate(Scratch& for_step, std::size_t n_pieces) {
    if (n_pieces < kLeastPieces || forced != State::unknown ||
        trials_of(sweep_, place_).state() != State::unknown)
        return;
    n_pieces_ = n_pieces;
    seconds_ = for_step.take<double>(n_pieces);
    std::fill_n(seconds_, n_pieces, 0.0);
}

void WalkedSweep::finish() const {
    if (seconds_ == nullptr) return;
    const auto ratio = [&](std::size_t pair) {
        const double first = seconds_[2 * pair], second = seconds_[2 * pair + 1];
        if (first == 0 || second == 0) return 0.0;
        return in_turn(2 * pair) == Walk::side_by_side ? first / second : second / first;
    };
    trials_of(sweep_, place_).add((n_pieces_ - 1) / 2, ratio);
}

KnownWalks known_walks() {
    KnownWalks known;
    for (std::size_t place = 0; place < kPlaces; ++place)
        for (std::size_t sweep = 0; sweep < kSweeps; ++sweep)
            known[place][sweep] = known_walk(Sweep(sweep), Place(place));
    return known;
}

const char* name_of(Walk walk) { return kNames[std::size_t(walk)]; }

std::string forced_walk() {
    const State state = forced;
    return state == State::unknown ? "auto" : name_of(walk_of(state));
}

bool force_walk(std::string_view name) {
    for (const Walk walk : {Walk::side_by_side, Walk::one_by_one}) {
        if (name == name_of(walk)) {
            forced = state_of(walk);
            return true;
        }
    }
    if (name != "auto") return false;
    forced = State::unknown;
    return true;
}

}  // namespace adafactor
