// How a thread rounds, what it makes of subnormal numbers, and which exceptions it traps.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace adafactor {

// While it lives, this thread computes as IEEE 754 has it by default: to the nearest, subnormal
// numbers kept, nothing trapped. Each thread of a process has an environment of its own, which
// other libraries change for some of them (torch.set_flush_denormal, code that was linked with
// -ffast-math).
class DefaultFloatEnvironment {
public:
    DefaultFloatEnvironment() : before_(control()) {
        if (before_ != kDefault) set_control(kDefault);
    }
    ~DefaultFloatEnvironment() {
        if (before_ != kDefault) set_control(before_);
    }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

private:
#if defined(__x86_64__)
    using Control = unsigned;
    static constexpr Control kDefault = 0x1f80;  // all exceptions masked, no other bit
    static constexpr Control kFlags = 0x3f;      // of exceptions that were, which do nothing
    static Control control() { return _mm_getcsr() & ~kFlags; }
    static void set_control(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
    using Control = std::uint64_t;
    static constexpr Control kDefault = 0;
    static Control control() {
        Control control;
        __asm__ volatile("mrs %0, fpcr" : "=r"(control));
        return control;
    }
    static void set_control(Control control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else  // left as it is
    using Control = int;
    static constexpr Control kDefault = 0;
    static Control control() { return kDefault; }
    static void set_control(Control) {}
#endif

    Control before_;
};

}  // namespace adafactor
