// Which way a sweep walks rows: whichever is faster on this machine, found once for the process
// while the first steps are taken.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include "engine/scratch.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

enum class Sweep { measure, sum_param, apply };
inline constexpr std::size_t kSweeps = 3;

// Where the arrays of a step are when it begins.
enum class Place { cache, memory };
inline constexpr std::size_t kPlaces = 2;

// The place of arrays that have so many bytes together.
Place place_of(std::size_t bytes);

// One sweep of a tensor, in pieces. Where it is not known yet which walk is faster, pieces are
// walked both ways in turns and timed: no result depends on it, so the search costs a step no more
// than that.
class WalkedSweep {
public:
    WalkedSweep(Sweep sweep, Place place);

    // Times this sweep if the walk is not known. Pieces are of one size, except for the last.
    void allocate(Scratch& for_step, std::size_t n_pieces);

    Walk walk() const { return walk_; }

    template <class Body>  // body(walk)
    void take(std::size_t piece, const Body& body) const {
        if (seconds_ == nullptr) return body(walk_);
        const Clock::time_point begin = Clock::now();
        body(in_turn(piece));
        seconds_[piece] = std::chrono::duration<double>(Clock::now() - begin).count();
    }

    // Adds what was timed to what the process knows.
    void finish() const;

private:
    using Clock = std::chrono::steady_clock;

    // A B B A: neither walk is always the second of a pair.
    static Walk in_turn(std::size_t piece) {
        return (piece ^ (piece >> 1)) % 2 == 0 ? Walk::side_by_side : Walk::one_by_one;
    }

    Sweep sweep_;
    Place place_;
    Walk walk_;
    std::size_t n_pieces_ = 0;
    double* seconds_ = nullptr;  // (n_pieces_,), 0 where none was taken
};

struct KnownWalk {
    Walk walk;
    bool measured;  // otherwise it is what the processor's vendor suggests
};
using KnownWalks = std::array<std::array<KnownWalk, kSweeps>, kPlaces>;

// Of every sweep from every place, whatever is forced.
KnownWalks known_walks();

const char* name_of(Walk walk);

// The name of the walk that is forced, or "auto".
std::string forced_walk();

// Forces a walk by its name in every later step, or with "auto" none; false if there is none of
// that name.
bool force_walk(std::string_view name);

}  // namespace adafactor
