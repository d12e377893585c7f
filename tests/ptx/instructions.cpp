// Implements the instructions as the PTX ISA describes them. Only instructions of the project's
// kernels are implemented; for others the parser throws a Fault with the name.
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "machine.h"

namespace ptx {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

template <typename T>
constexpr Size size_of() {
  return sizeof(T) == 2 ? Size::k16 : sizeof(T) == 4 ? Size::k32 : Size::k64;
}

// --- instructions that compute each lane separately ---

// F is the type of a lambda without captures. A Handler constructs an F instead of storing one.

template <typename F, typename D, typename... S>
Operation lanewise_as(D (F::*)(S...) const) {
  const Handler run = [](Warp& w, const Instruction& in, uint32_t lanes) {
    D* const d = w.lanes<D>(in.op[0]);
    [&]<size_t... k>(std::index_sequence<k...>) {
      const std::tuple<const S*...> s{w.lanes<S>(in.op[1 + k])...};
      for_lanes(lanes, [&](int lane) { d[lane] = F()(std::get<k>(s)[lane]...); });
    }(std::index_sequence_for<S...>());
  };
  return {run, {size_of<D>(), size_of<S>()...}};
}
// The operation d = f(a, b, ...). The types of the operands are the types of the lambda.
template <typename F>
Operation lanewise(F) {
  return lanewise_as(&F::operator());
}

// Sets a predicate, which has one bit for each lane, in some lanes.
void set_predicate(Warp& w, uint32_t at, uint32_t lanes, uint32_t value) {
  w.predicates[at] = (w.predicates[at] & ~lanes) | (value & lanes);
}

// The operation p = f(a, b), with a predicate p.
template <typename T, typename F>
Operation compare(F) {
  const Handler run = [](Warp& w, const Instruction& in, uint32_t lanes) {
    const T *a = w.lanes<T>(in.op[1]), *b = w.lanes<T>(in.op[2]);
    uint32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane) result |= uint32_t(F()(a[lane], b[lane])) << lane;
    set_predicate(w, in.op[0], lanes, result);
  };
  return {run, {Size::kPredicate, size_of<T>(), size_of<T>()}};
}

template <typename T>
Operation select() {
  const Handler run = [](Warp& w, const Instruction& in, uint32_t lanes) {
    T* const d = w.lanes<T>(in.op[0]);
    const T *a = w.lanes<T>(in.op[1]), *b = w.lanes<T>(in.op[2]);
    const uint32_t p = w.predicates[in.op[3]];
    for_lanes(lanes, [&](int lane) { d[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
  };
  return {run, {size_of<T>(), size_of<T>(), size_of<T>(), Size::kPredicate}};
}

template <typename F>
Operation predicate_operation(int sources, F) {
  const Handler run = [](Warp& w, const Instruction& in, uint32_t lanes) {
    set_predicate(w, in.op[0], lanes, F()(w.predicates[in.op[1]], w.predicates[in.op[2]]));
  };
  return {run, std::vector<Size>(1 + sources, Size::kPredicate)};
}

// Replaces every NaN by the NaN that f32 instructions return. f64 instructions keep theirs.
f32 canonical(f32 x) { return std::isnan(x) ? std::bit_cast<f32>(0x7fffffffu) : x; }
f64 canonical(f64 x) { return x; }

// Replaces subnormal numbers by zeros.
f32 flushed(f32 x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

f32 ex2_approx_ftz(f32 a) { return flushed(static_cast<f32>(std::exp2(f64(flushed(a))))); }
f32 rcp_approx_ftz(f32 a) { return flushed(static_cast<f32>(1.0 / f64(flushed(a)))); }
// If |b| is above 2^126, the quotient is 0, or NaN if a is infinite.
f32 div_approx(f32 a, f32 b) {
  const f32 size = std::fabs(b);
  if (size > 0x1p126f && std::isfinite(size))
    return std::isinf(a) ? std::numeric_limits<f32>::quiet_NaN() : a * std::copysign(0.0f, b);
  return static_cast<f32>(f64(a) / f64(b));
}
// Uses only the upper 32 bits of the operand, and sets the lower 32 bits of the result to 0.
f64 rcp_approx_ftz(f64 a) {
  const auto upper = [](f64 x) {
    return std::bit_cast<f64>(std::bit_cast<u64>(x) & 0xffffffff00000000u);
  };
  if (std::fabs(a) < 0x1p-1022) a = std::copysign(0.0, a);
  const f64 r = upper(1.0 / upper(a));
  return std::fabs(r) < 0x1p-1022 ? std::copysign(0.0, r) : r;
}

// a * b + c, rounded towards minus infinity.
__attribute__((noinline, optimize("rounding-math"))) f32 fma_rm(f32 a, f32 b, f32 c) {
  const int before = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile f32 x = a, y = b, z = c;
  volatile f32 d = std::fma(x, y, z);
  std::fesetround(before);
  return d;
}

template <typename T>
T divide(T a, T b) {
  if (b == 0) throw Fault("a division by zero");
  return b == T(-1) && std::is_signed_v<T> ? T(0u - u32(a)) : a / b;
}

// A shift by more bits than the width of the value is a shift by the width.
template <typename T>
T shift_left(T a, u32 n) {
  return n >= 8 * sizeof(T) ? 0 : static_cast<T>(a << n);
}
template <typename T>
T shift_right(T a, u32 n) {
  const u32 most = 8 * sizeof(T) - 1;
  if (n > most) return std::is_signed<T>::value ? static_cast<T>(a >> most) : 0;
  return static_cast<T>(a >> n);
}

// Rounds to nearest, ties to even; NaN becomes 0x7fff.
u16 to_bf16(f32 a) {
  if (std::isnan(a)) return 0x7fff;
  const u32 u = std::bit_cast<u32>(a), kept = u >> 16, rest = u & 0xffff;
  return static_cast<u16>(kept + (rest > 0x8000 || (rest == 0x8000 && (kept & 1))));
}
f32 from_bf16(u16 a) { return std::bit_cast<f32>(u32(a) << 16); }
u16 to_f16(f32 a) {
  if (std::isnan(a)) return 0x7fff;
  return std::bit_cast<u16>(static_cast<_Float16>(a));
}
f32 from_f16(u16 a) { return static_cast<f32>(std::bit_cast<_Float16>(a)); }
// Rounds to 10 bits of mantissa: to nearest, ties away from zero.
u32 to_tf32(f32 a) {
  if (std::isnan(a)) return 0x7fffffff;
  const u32 u = std::bit_cast<u32>(a);
  if (std::isinf(a)) return u;
  const u32 rest = u & 0x1fff, kept = u - rest;
  return rest >= 0x1000 ? kept + 0x2000 : kept;  // a carry into the exponent is correct
}

// prmt: selects four of the eight bytes of a and b.
u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = u64(b) << 32 | a;
  u32 d = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 s = selector >> 4 * i & 15;
    u32 byte = static_cast<u32>(bytes >> 8 * (s & 7)) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << 8 * i;
  }
  return d;
}

template <typename Whole, typename Part>
Operation pack() {
  return lanewise(
      [](Part low, Part high) -> Whole { return Whole(low) | Whole(high) << 8 * sizeof(Part); });
}
template <typename Whole, typename Part>
Operation unpack() {
  const Handler run = [](Warp& w, const Instruction& in, uint32_t lanes) {
    Part *low = w.lanes<Part>(in.op[0]), *high = w.lanes<Part>(in.op[1]);
    const Whole* const a = w.lanes<Whole>(in.op[2]);
    for_lanes(lanes, [&](int lane) {
      const Whole whole = a[lane];
      low[lane] = static_cast<Part>(whole),
      high[lane] = static_cast<Part>(whole >> 8 * sizeof(Part));
    });
  };
  return {run, {size_of<Part>(), size_of<Part>(), size_of<Whole>()}};
}

// --- collectives of a warp ---

enum class Shuffle { kIdx, kBfly };

template <Shuffle mode>
void shuffle_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  u32* const d = w.lanes<u32>(in.op[0]);
  u32 a[kLanes], result[kLanes], valid = 0;
  std::memcpy(a, w.lanes<u32>(in.op[2]), sizeof a);
  const u32 *b = w.lanes<u32>(in.op[3]), *c = w.lanes<u32>(in.op[4]);
  for_lanes(lanes, [&](int lane) {
    const int bval = b[lane] & 31, cval = c[lane] & 31, segmask = c[lane] >> 8 & 31;
    const int max_lane = (lane & segmask) | (cval & ~segmask), min_lane = lane & segmask;
    int j = mode == Shuffle::kBfly ? lane ^ bval : min_lane | (bval & ~segmask);
    const bool p = j <= max_lane;
    if (!p) j = lane;
    if (!(lanes >> j & 1)) fault(w, in, lane, "a shuffle from a lane that is not a member");
    result[lane] = a[j];
    valid |= uint32_t(p) << lane;
  });
  for_lanes(lanes, [&](int lane) { d[lane] = result[lane]; });
  set_predicate(w, in.op[1], lanes, valid);
}
template <Shuffle mode>
Operation shuffle() {
  return {shuffle_handler<mode>,
          {Size::k32, Size::kPredicate, Size::k32, Size::k32, Size::k32, Size::k32},
          Control::kWarpCollective,
          5};
}

// d (16 x 8) = a (16 x k) * b (k x 8) + c, computed in float64 and rounded once.
template <int k>
struct Tile {
  f64 a[16][k], b[k][8];

  void multiply(Warp& w, const Instruction& in) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int group = lane >> 2, in_group = lane & 3;
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
        f64 sum = w.lanes<f32>(in.op[10 + i])[lane];
        for (int n = 0; n < k; ++n) sum += a[row][n] * b[n][column];
        w.lanes<f32>(in.op[i])[lane] = canonical(static_cast<f32>(sum));
      }
    }
  }
};

// The layout is in the section "Matrix Fragments for mma.m16n8k16 with floating point type" of the
// PTX ISA. Register r has the elements 2 r (in its lower half) and 2 r + 1.
template <f32 (*to_f32)(u16)>
void mma_m16n8k16_handler(Warp& w, const Instruction& in, uint32_t) {
  Tile<16> tile;
  const auto element = [&](int operand, int i, int lane) {
    return to_f32(static_cast<u16>(w.lanes<u32>(in.op[operand + i / 2])[lane] >> 16 * (i & 1)));
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2, in_group = lane & 3;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      tile.a[row][column] = element(4, i, lane);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
      tile.b[row][group] = element(8, i, lane);
    }
  }
  tile.multiply(w, in);
}

// The layout is in the section "Matrix Fragments for mma.m16n8k8" of the PTX ISA, type .tf32. The
// hardware ignores the lower 13 bits. If they are not 0, the kernel forgot to round the factor.
void mma_m16n8k8_tf32_handler(Warp& w, const Instruction& in, uint32_t) {
  Tile<8> tile;
  const auto element = [&](int operand, int lane) -> f64 {
    const u32 word = w.lanes<u32>(in.op[operand])[lane];
    if ((word & 0x1fff) && std::isfinite(std::bit_cast<f32>(word)))
      fault(w, in, lane, "a factor that was not rounded to TF32");
    return std::bit_cast<f32>(word & ~0x1fffu);
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2, in_group = lane & 3;
    for (int i = 0; i < 4; ++i)
      tile.a[i == 0 || i == 2 ? group : group + 8][i < 2 ? in_group : in_group + 4] =
          element(4 + i, lane);
    for (int i = 0; i < 2; ++i)
      tile.b[i == 0 ? in_group : in_group + 4][group] = element(8 + i, lane);
  }
  tile.multiply(w, in);
}

// The operation of an mma instruction: d, a, b and c have 14 registers together.
Operation mma(Handler run) {
  return {run, std::vector<Size>(14, Size::k32), Control::kWarpCollective, -1};
}

uint64_t address_of(Warp& w, const Instruction& in, int lane) {
  const uint64_t base =
      in.access.base_bytes == 8 ? w.lanes<u64>(in.op[0])[lane] : w.lanes<u32>(in.op[0])[lane];
  return base + in.access.displacement;
}

AccessRecord record_of(const Warp& w, const Instruction& in, int lane) {
  const auto thread = static_cast<uint32_t>(w.index * kLanes + lane);
  const auto bytes = static_cast<uint8_t>(in.access.bytes);
  return {w.machine->launch_number, w.block->index, thread, w.block->epoch, w.epoch, bytes,
          in.access.relaxed};
}

void check_race(const Warp& w, const Instruction& in, int lane, Shadow& shadow,
                const AccessRecord& now, bool is_store) {
  if (const char* const race = record_access(shadow, now, is_store))
    fault(w, in, lane, std::string("a data race with ") + race);
}

// Checks an access to global memory and returns the host address of its bytes.
unsigned char* global_bytes(Warp& w, const Instruction& in, int lane, uint64_t address,
                            unsigned bytes, bool is_store) {
  if (in.cached.launch != w.machine->launch_number || address < in.cached.begin ||
      address + bytes > in.cached.end) {
    const Allocation* const a = find_allocation(address, true);
    if (!a || address + bytes > a->end)
      fault(w, in, lane,
            a ? "an access beyond the end of an allocation of " +
                    std::to_string(a->end - a->begin) + " bytes, at " +
                    std::to_string(address - a->begin)
              : "an access to memory that is not allocated");
    in.cached = {w.machine->launch_number, a->begin, a->end, a->shadow};
  }
  auto* const shadow = static_cast<Shadow*>(in.cached.shadow);
  if (shadow) {
    const AccessRecord now = record_of(w, in, lane);
    const uint64_t begin = address - in.cached.begin;
    for (uint64_t at = begin / kGranule; at <= (begin + bytes - 1) / kGranule; ++at)
      check_race(w, in, lane, shadow[at], now, is_store);
  }
  return reinterpret_cast<unsigned char*>(address);
}

// Checks an access to shared memory and returns the host address of its bytes.
unsigned char* shared_bytes(Warp& w, const Instruction& in, int lane, uint64_t address,
                            unsigned bytes, bool is_store) {
  Block& block = *w.block;
  const uint64_t at = address - kSharedBase;
  if (address < kSharedBase || at + bytes > block.shared.size())
    fault(w, in, lane, "an access beyond the block's shared memory, at " + std::to_string(at));
  if (is_store)
    std::memset(&block.written[at], 1, bytes);
  else if (std::memchr(&block.written[at], 0, bytes))
    fault(w, in, lane, "shared memory is read before it was written, at " + std::to_string(at));
  const AccessRecord now = record_of(w, in, lane);
  for (uint64_t word = at / 4; word <= (at + bytes - 1) / 4; ++word)
    check_race(w, in, lane, block.shadow[word], now, is_store);
  return &block.shared[at];
}

// Checks an access to any memory and returns the host address of its bytes.
unsigned char* bytes_at(Warp& w, const Instruction& in, int lane, bool is_store) {
  const Access& a = in.access;
  const unsigned bytes = a.bytes * a.elements;
  const uint64_t address = address_of(w, in, lane);
  if (address % bytes != 0) fault(w, in, lane, "a misaligned address");
  if (a.space == Space::kGlobal) return global_bytes(w, in, lane, address, bytes, is_store);
  if (a.space == Space::kShared) return shared_bytes(w, in, lane, address, bytes, is_store);
  if (address >= kArgumentBase) {
    const uint32_t argument_bytes = w.machine->launch.kernel->argument_bytes;
    const uint64_t at = address - kArgumentBase;
    if (at + bytes > argument_bytes) fault(w, in, lane, "an access beyond the arguments of a call");
    return &w.arguments[size_t(lane) * argument_bytes + at];
  }
  const auto& parameters = w.machine->launch.parameters;
  const uint64_t at = address - kParamBase;
  if (address < kParamBase || at + bytes > parameters.size())
    fault(w, in, lane, "an access beyond the parameters");
  return const_cast<unsigned char*>(&parameters[at]);
}

// Delivers the delayed stores of a thread to these bytes, because a thread sees its own stores.
void deliver_own(Warp& w, int lane, uint64_t address, uint32_t bytes) {
  Machine& m = *w.machine;
  for (size_t i = m.delayed.size(); i-- > 0;) {
    const Delayed& d = m.delayed[i];
    if (d.block == w.block->index && d.thread == w.index * kLanes + lane &&
        d.address < address + bytes && address < d.address + d.bytes)
      m.deliver(i);
  }
}

// Whether a value has the bits of new memory, or of memory from testing::unwritten (all bits set).
bool is_unwritten(u64 value, unsigned bytes) {
  const u64 all = ~u64{0} >> (64 - 8 * bytes);
  return (bytes > 1 && value == all) || value == (kJunk * 0x0101010101010101u & all);
}

void load_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  const Access& a = in.access;
  for_lanes(lanes, [&](int lane) {
    const unsigned char* const from = bytes_at(w, in, lane, false);
    if (options().delays && a.space == Space::kGlobal)
      deliver_own(w, lane, reinterpret_cast<uint64_t>(from), a.bytes * a.elements);
    for (int i = 0; i < a.elements; ++i) {
      u64 value = 0;
      std::memcpy(&value, from + i * a.bytes, a.bytes);
      if (a.space == Space::kGlobal && !a.relaxed && is_unwritten(value, a.bytes))
        fault(w, in, lane, "global memory is read before it was written");
      const int unused = 64 - 8 * a.bytes;
      if (a.is_signed) value = static_cast<u64>(static_cast<s64>(value << unused) >> unused);
      std::memcpy(w.lanes<unsigned char>(in.op[1 + i]) + lane * a.register_bytes[i], &value,
                  a.register_bytes[i]);
    }
  });
}

void store_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  const Access& a = in.access;
  w.machine->without_progress = 0;
  for_lanes(lanes, [&](int lane) {
    unsigned char* to = bytes_at(w, in, lane, true);
    if (options().delays && a.space == Space::kGlobal) {
      const auto address = reinterpret_cast<uint64_t>(to);
      const uint32_t bytes = a.bytes * a.elements;
      w.machine->deliver_to(address, bytes);  // stores to the same address stay in order
      if (a.relaxed) {
        w.machine->delayed.push_back({address, bytes, w.block->index, w.index * kLanes + lane, {}});
        to = w.machine->delayed.back().value;
      }
    }
    for (int i = 0; i < a.elements; ++i)
      std::memcpy(to + i * a.bytes,
                  w.lanes<unsigned char>(in.op[1 + i]) + lane * a.register_bytes[i], a.bytes);
  });
}

// A prefetch has no effect, but its address must be in an allocation.
void prefetch_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    if (!find_allocation(address_of(w, in, lane), false))
      fault(w, in, lane, "a prefetch of memory that is not allocated");
  });
}

void nothing(Warp&, const Instruction&, uint32_t) {}

void trap_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  fault(w, in, __builtin_ctz(lanes), "a trap");
}

// vprintf(format, values); only a format without values is supported.
void print_handler(Warp& w, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    const u64 at = w.lanes<u64>(in.op[0])[lane] - kArgumentBase;
    const size_t lane_offset = size_t(lane) * w.machine->launch.kernel->argument_bytes;
    const auto* const format = value_at<const char*>(&w.arguments[lane_offset + at]);
    if (std::strchr(format, '%')) fault(w, in, lane, "not implemented: printf with values");
    std::fputs(format, stdout);
  });
}

template <typename T>
void add_compares(std::map<std::string, Operation>& all, const std::string& type) {
  all["setp.eq." + type] = compare<T>([](T a, T b) { return a == b; });
  // For floats, ne is true only if neither operand is NaN.
  all["setp.ne." + type] = compare<T>([](T a, T b) { return a < b || a > b; });
  all["setp.lt." + type] = compare<T>([](T a, T b) { return a < b; });
  all["setp.le." + type] = compare<T>([](T a, T b) { return a <= b; });
  all["setp.gt." + type] = compare<T>([](T a, T b) { return a > b; });
  all["setp.ge." + type] = compare<T>([](T a, T b) { return a >= b; });
  if (!std::is_floating_point<T>::value) return;
  all["setp.equ." + type] = compare<T>([](T a, T b) { return !(a < b || a > b); });
  all["setp.neu." + type] = compare<T>([](T a, T b) { return !(a == b); });
  all["setp.ltu." + type] = compare<T>([](T a, T b) { return !(a >= b); });
  all["setp.leu." + type] = compare<T>([](T a, T b) { return !(a > b); });
  all["setp.gtu." + type] = compare<T>([](T a, T b) { return !(a <= b); });
  all["setp.geu." + type] = compare<T>([](T a, T b) { return !(a < b); });
}

template <typename T>
void add_moves(std::map<std::string, Operation>& all, std::initializer_list<const char*> types) {
  for (const char* const type : types) {
    all[std::string("mov.") + type] = lanewise([](T a) -> T { return a; });
    all[std::string("selp.") + type] = select<T>();
  }
}

// Arithmetic modulo 2^n of the integers of n bits, signed or not, and operations on their bits.
template <typename T>
void add_words(std::map<std::string, Operation>& all, const std::string& bits) {
  all["add.s" + bits] = lanewise([](T a, T b) -> T { return a + b; });
  all["sub.s" + bits] = lanewise([](T a, T b) -> T { return a - b; });
  all["neg.s" + bits] = lanewise([](T a) -> T { return 0u - a; });
  all["mul.lo.s" + bits] = lanewise([](T a, T b) -> T { return a * b; });
  all["mad.lo.s" + bits] = lanewise([](T a, T b, T c) -> T { return a * b + c; });
  all["and.b" + bits] = lanewise([](T a, T b) -> T { return a & b; });
  all["or.b" + bits] = lanewise([](T a, T b) -> T { return a | b; });
  all["xor.b" + bits] = lanewise([](T a, T b) -> T { return a ^ b; });
  all["not.b" + bits] = lanewise([](T a) -> T { return ~a; });
  all["shl.b" + bits] = lanewise([](T a, u32 n) -> T { return shift_left(a, n); });
}

template <typename T>
void add_integers(std::map<std::string, Operation>& all, const std::string& type) {
  all["min." + type] = lanewise([](T a, T b) -> T { return std::min(a, b); });
  all["max." + type] = lanewise([](T a, T b) -> T { return std::max(a, b); });
  all["shr." + type] = lanewise([](T a, u32 n) -> T { return shift_right(a, n); });
}

template <typename T>
void add_floats(std::map<std::string, Operation>& all, const std::string& type) {
  // The result of .rn is the same: it only forbids the assembler to fuse the operation.
  for (const char* const rounding : {".", ".rn."}) {
    all["add" + (rounding + type)] = lanewise([](T a, T b) -> T { return canonical(a + b); });
    all["sub" + (rounding + type)] = lanewise([](T a, T b) -> T { return canonical(a - b); });
    all["mul" + (rounding + type)] = lanewise([](T a, T b) -> T { return canonical(a * b); });
  }
  all["fma.rn." + type] = lanewise([](T a, T b, T c) -> T { return canonical(std::fma(a, b, c)); });
  all["neg." + type] = lanewise([](T a) -> T { return -a; });
  all["abs." + type] = lanewise([](T a) -> T { return std::fabs(a); });
  // copysign takes the sign of the first operand.
  all["copysign." + type] = lanewise([](T a, T b) -> T { return std::copysign(b, a); });
  all["rcp.rn." + type] = lanewise([](T a) -> T { return 1 / a; });
  all["rcp.approx.ftz." + type] = lanewise([](T a) -> T { return rcp_approx_ftz(a); });
  all["rsqrt.approx." + type] = lanewise([](T a) -> T { return T(1 / std::sqrt(f64(a))); });
}

std::map<std::string, Operation> make_operations() {
  std::map<std::string, Operation> all;
  add_compares<s16>(all, "s16"), add_compares<u16>(all, "u16");
  add_compares<s32>(all, "s32"), add_compares<u32>(all, "u32");
  add_compares<s64>(all, "s64"), add_compares<u64>(all, "u64");
  add_compares<f32>(all, "f32"), add_compares<f64>(all, "f64");
  all["setp.eq.b16"] = all["setp.eq.u16"], all["setp.ne.b16"] = all["setp.ne.u16"];
  all["setp.eq.b32"] = all["setp.eq.u32"], all["setp.ne.b32"] = all["setp.ne.u32"];
  add_moves<u16>(all, {"b16", "u16", "s16"});
  add_moves<u32>(all, {"b32", "u32", "s32", "f32"});
  add_moves<u64>(all, {"b64", "u64", "s64", "f64"});
  all["mov.b32 pack"] = pack<u32, u16>(), all["mov.b64 pack"] = pack<u64, u32>();
  all["mov.b32 unpack"] = unpack<u32, u16>(), all["mov.b64 unpack"] = unpack<u64, u32>();

  all["mov.pred"] = predicate_operation(1, [](u32 a, u32) { return a; });
  all["not.pred"] = predicate_operation(1, [](u32 a, u32) { return ~a; });
  all["and.pred"] = predicate_operation(2, [](u32 a, u32 b) { return a & b; });
  all["or.pred"] = predicate_operation(2, [](u32 a, u32 b) { return a | b; });
  all["xor.pred"] = predicate_operation(2, [](u32 a, u32 b) { return a ^ b; });

  add_words<u16>(all, "16"), add_words<u32>(all, "32"), add_words<u64>(all, "64");
  add_integers<s16>(all, "s16"), add_integers<u16>(all, "u16");
  add_integers<s32>(all, "s32"), add_integers<u32>(all, "u32");
  add_integers<s64>(all, "s64"), add_integers<u64>(all, "u64");
  all["mul.wide.s32"] = lanewise([](s32 a, s32 b) -> s64 { return s64(a) * b; });
  all["mul.wide.u32"] = lanewise([](u32 a, u32 b) -> u64 { return u64(a) * b; });
  all["mul.wide.s16"] = lanewise([](s16 a, s16 b) -> s32 { return a * b; });
  all["mul.wide.u16"] = lanewise([](u16 a, u16 b) -> u32 { return u32(a) * b; });
  all["div.s32"] = lanewise([](s32 a, s32 b) -> s32 { return divide(a, b); });
  all["div.u32"] = lanewise([](u32 a, u32 b) -> u32 { return divide(a, b); });
  all["prmt.b32"] = lanewise([](u32 a, u32 b, u32 c) -> u32 { return permute_bytes(a, b, c); });

  add_floats<f32>(all, "f32"), add_floats<f64>(all, "f64");
  all["fma.rm.f32"] = lanewise([](f32 a, f32 b, f32 c) -> f32 { return fma_rm(a, b, c); });
  all["div.approx.f32"] = lanewise([](f32 a, f32 b) -> f32 { return div_approx(a, b); });
  all["ex2.approx.ftz.f32"] = lanewise([](f32 a) -> f32 { return ex2_approx_ftz(a); });

  all["cvt.s64.s32"] = lanewise([](s32 a) -> s64 { return a; });
  all["cvt.s64.s32 of a b64 register"] = lanewise([](u64 a) -> s64 { return static_cast<s32>(a); });
  all["cvt.s8.s32"] = lanewise([](s32 a) -> s16 { return static_cast<int8_t>(a); });
  all["cvt.s16.s8"] = lanewise([](u16 a) -> s16 { return static_cast<int8_t>(a); });
  all["cvt.u64.u32"] = lanewise([](u32 a) -> u64 { return a; });
  all["cvt.u32.u64"] = lanewise([](u64 a) -> u32 { return static_cast<u32>(a); });
  all["cvt.u16.u32"] = lanewise([](u32 a) -> u16 { return static_cast<u16>(a); });
  all["cvt.u32.u16"] = lanewise([](u16 a) -> u32 { return a; });
  all["cvt.rn.f32.s64"] = lanewise([](s64 a) -> f32 { return static_cast<f32>(a); });
  all["cvt.rn.f64.s64"] = lanewise([](s64 a) -> f64 { return static_cast<f64>(a); });
  all["cvt.f64.f32"] = lanewise([](f32 a) -> f64 { return a; });
  all["cvt.rn.f32.f64"] = lanewise([](f64 a) -> f32 { return static_cast<f32>(a); });
  all["cvt.rni.f32.f32"] = lanewise([](f32 a) -> f32 { return std::nearbyint(a); });
  // Clamps to [0, 1]; NaN becomes 0.
  all["cvt.sat.f32.f32"] = lanewise([](f32 a) -> f32 { return a > 0 ? std::min(a, 1.0f) : 0; });
  all["cvt.rn.bf16.f32"] = lanewise([](f32 a) -> u16 { return to_bf16(a); });
  all["cvt.rn.f16.f32"] = lanewise([](f32 a) -> u16 { return to_f16(a); });
  all["cvt.f32.bf16"] = lanewise([](u16 a) -> f32 { return from_bf16(a); });
  all["cvt.f32.f16"] = lanewise([](u16 a) -> f32 { return from_f16(a); });
  all["cvt.rna.tf32.f32"] = lanewise([](f32 a) -> u32 { return to_tf32(a); });
  all["add.u64"] = all["add.s64"];
  // Global addresses are the same as generic addresses.
  all["cvta.to.global.u64"] = all["cvta.global.u64"] = all["mov.u64"];

  all["ld"] = {load_handler, {}}, all["st"] = {store_handler, {}};
  all["prefetch"] = {prefetch_handler, {}}, all["trap"] = {trap_handler, {}};
  all["call.uni vprintf"] = {print_handler, {Size::k64, Size::k64}};
  all["bar.sync"] = {nothing, {Size::k32}, Control::kBlockBarrier, -1};
  all["bar.warp.sync"] = {nothing, {Size::k32}, Control::kWarpBarrier, 0};
  all["mov.u64 %globaltimer"] = lanewise([] { return options().nanoseconds += 1000; });
  all["shfl.sync.idx.b32"] = shuffle<Shuffle::kIdx>();
  all["shfl.sync.bfly.b32"] = shuffle<Shuffle::kBfly>();
  all["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = mma(mma_m16n8k16_handler<from_bf16>);
  all["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = mma(mma_m16n8k16_handler<from_f16>);
  all["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = mma(mma_m16n8k8_tf32_handler);
  return all;
}

}  // namespace

const std::map<std::string, Operation>& operations() {
  static const std::map<std::string, Operation> all = make_operations();
  return all;
}

}  // namespace ptx
