// A decoded kernel of a PTX module. Every operand of an instruction is a location in the register
// file of a warp; immediates and special registers also have locations there.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~uint32_t{0};

// An error of the program under test, or a feature of its PTX that is not implemented.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Warp;
struct Instruction;
// Executes an instruction for some lanes of a warp.
using Handler = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Control : uint8_t {
  kPlain,
  kBranch,
  kExit,
  kBlockBarrier,    // bar.sync
  kWarpBarrier,     // bar.warp.sync: waits until all members execute some bar.warp.sync
  kWarpCollective,  // waits until all members reach this instruction, then executes it for all
};

enum class Space : uint8_t { kParam, kShared, kGlobal };

// The memory access of ld, st or prefetch.
struct Access {
  Space space = Space::kGlobal;
  bool relaxed = false;            // whether the access is .relaxed, with a scope
  bool is_signed = false;          // whether a value narrower than its register is sign-extended
  uint8_t bytes = 0;               // the size of an element
  uint8_t elements = 1;            // 2 or 4 for .v2 or .v4
  uint8_t register_bytes[4] = {};  // the size of the register of each element
  uint8_t base_bytes = 8;          // the size of the register with the address
  int64_t displacement = 0;        // added to the address
};

// The allocation that an instruction accessed last, as a cache.
struct CachedAllocation {
  uint32_t launch = 0;
  uintptr_t begin = 0, end = 0;
  void* shadow = nullptr;
};

struct Instruction {
  Handler run = nullptr;
  Control control = Control::kPlain;
  bool guard_negated = false;
  int guard = -1;        // the number of the predicate that guards the instruction; -1: no guard
  uint32_t target = 0;   // the index of the instruction that a branch jumps to
  int members = -1;      // the operand with the mask of member lanes; -1: all lanes are members
  uint32_t op[16] = {};  // the operands: offsets in the register file, or numbers of predicates
  Access access;
  mutable CachedAllocation cached;
  std::string text;
};

// An immediate: its location, its size (0 for a predicate) and its value.
struct Constant {
  uint32_t at;
  uint8_t bytes;
  uint64_t bits;
};
// A special register: its location, and its number in the list %tid.x, .y, .z, %ctaid.x, .y, .z,
// %ntid.x, .y, .z, %nctaid.x, .y, .z, %laneid.
struct SpecialRegister {
  uint32_t at;
  int which;
};
constexpr int kLaneid = 12;
// A parameter of a kernel: its offset in the parameter space, and its size.
struct Parameter {
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;  // the mangled name
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
  uint32_t parameter_bytes = 0, register_bytes = 0, predicates = 0, argument_bytes = 0;

  // The demangled name without namespaces and arguments.
  std::string short_name() const;
};

// The first addresses of three spaces: parameters of the kernel, shared memory, and arguments of a
// call. They differ, so that a kernel that takes one space for another usually fails.
constexpr uint64_t kParamBase = 0x10000, kSharedBase = 0x400, kArgumentBase = 0x20000;

// The memory of the global variables, by name, which all kernels of a program share.
using Variables = std::map<std::string, std::unique_ptr<unsigned char[]>>;

// Decodes a kernel, from ".entry" to the closing brace. Throws a Fault for an unknown feature.
std::unique_ptr<Kernel> parse_kernel(const std::string& text, const Variables& variables);
// Returns the text of each kernel of a module, by name, and adds the module's variables.
std::map<std::string, std::string> split_module(const std::string& text, Variables& variables);
// Decodes every kernel of the program and prints the features of PTX that are not implemented.
// Returns 1 if there are any, otherwise 0.
int decode_all_kernels();

// The size of an operand.
enum class Size : uint8_t { kPredicate, k16, k32, k64 };
struct Operation {
  Handler run = nullptr;
  std::vector<Size> operands;  // results first
  Control control = Control::kPlain;
  int members = -1;  // as in Instruction
};
// The operations by opcode. For ld, st and prefetch, the key has no qualifiers; only `run` is set.
const std::map<std::string, Operation>& operations();

}  // namespace ptx
