// A kernel of a PTX module, decoded: every operand of an instruction is a place in the register
// file of a warp, where immediates and special registers lie too.
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

// What the program under test, or the text of its PTX, does wrong.
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
  kWarpBarrier,     // bar.warp.sync: waits for lanes wherever they execute one
  kWarpCollective,  // waits until the lanes named have come here, then executes for all
};

enum class Space : uint8_t { kParam, kShared, kGlobal };

// Of ld, st and prefetch.
struct Access {
  Space space = Space::kGlobal;
  bool strong = false;     // .relaxed with a scope
  bool is_signed = false;  // a narrow value is sign-extended
  uint8_t bytes = 0;       // of an element
  uint8_t elements = 1;    // .v2, .v4
  uint8_t register_bytes[4] = {};
  uint8_t base_bytes = 8;  // of the register that holds the address
  int64_t displacement = 0;
};

// The allocation that an instruction met last, in a launch.
struct Recent {
  uint32_t launch = 0;
  uintptr_t begin = 0, end = 0;
  void* shadow = nullptr;
};

struct Instruction {
  Handler run = nullptr;
  Control control = Control::kPlain;
  bool guard_negated = false;
  int guard = -1;        // predicate
  uint32_t target = 0;   // of a branch
  int members = -1;      // operand with the mask of a collective; -1: all lanes
  uint32_t op[16] = {};  // offsets in the register file; of a predicate, its number
  Access access;
  mutable Recent recent;
  std::string text;
};

struct Constant {
  uint32_t at;
  uint8_t bytes;
  uint64_t bits;
};
// %tid, %ctaid, %ntid, %nctaid: three each; then %laneid.
struct SpecialRegister {
  uint32_t at;
  int which;
};
constexpr int kLaneid = 12;
struct Parameter {
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;  // as the assembler has it
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
  uint32_t parameter_bytes = 0, register_bytes = 0, predicates = 0, argument_bytes = 0;

  std::string short_name() const;
};

// Addresses of these spaces start here, so that one is not taken for another's: parameters of the
// kernel, shared memory, arguments of a call.
constexpr uint64_t kParamBase = 0x10000, kSharedBase = 0x400, kArgumentBase = 0x20000;

struct Variable {
  std::unique_ptr<unsigned char[]> memory;
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory.get()); }
};
// What all kernels of a program share.
using Variables = std::map<std::string, Variable>;

// Text from ".entry" to the closing brace. Throws a Fault that names what is not implemented.
std::unique_ptr<Kernel> parse_kernel(const std::string& text, const Variables& variables);
// The text of each kernel of a module, and its variables.
std::map<std::string, std::string> split_module(const std::string& text, Variables& variables);

// The operands an operation expects.
enum class Kind : uint8_t { kPredicate, k16, k32, k64 };
struct Operation {
  Handler run = nullptr;
  std::vector<Kind> operands;  // results first
  Control control = Control::kPlain;
  int members = -1;
};
const std::map<std::string, Operation>& operations();

// ld, st, prefetch.
struct MemoryHandlers {
  Handler load, store, prefetch;
};
MemoryHandlers memory_handlers();

}  // namespace ptx
