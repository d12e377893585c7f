// Decodes the text of PTX modules.
#include <cxxabi.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <regex>
#include <sstream>

#include "kernel.h"

namespace ptx {
namespace {

std::string trimmed(const std::string& s) {
  const size_t begin = s.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return s.substr(begin, s.find_last_not_of(" \t\r\n") - begin + 1);
}

std::vector<std::string> split(const std::string& s, char separator) {
  std::vector<std::string> parts;
  std::stringstream in(s);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

// nvcc writes only comments that end with their line.
std::string without_comments(const std::string& text) {
  std::string out;
  for (const std::string& line : split(text, '\n')) out += line.substr(0, line.find("//")) + '\n';
  return out;
}

// The size of each PTX type in bytes; 0 for a predicate.
const std::map<std::string, int>& type_bytes() {
  static const std::map<std::string, int> bytes = {{"pred", 0}, {"b8", 1},  {"u8", 1},  {"s8", 1},
                                                   {"b16", 2},  {"u16", 2}, {"s16", 2}, {"b32", 4},
                                                   {"u32", 4},  {"s32", 4}, {"f32", 4}, {"b64", 8},
                                                   {"u64", 8},  {"s64", 8}, {"f64", 8}};
  return bytes;
}

// The number of a special register, as in SpecialRegister::which, or -1 for other operands.
int special_register(const std::string& text) {
  static const char* const names[] = {"%tid.", "%ctaid.", "%ntid.", "%nctaid."};
  for (int i = 0; i < kLaneid; ++i)
    if (text == std::string(names[i / 3]) + "xyz"[i % 3]) return i;
  return text == "%laneid" ? kLaneid : -1;
}

class Parser {
 public:
  Parser(const std::string& source, const Variables& variables) : text_(without_comments(source)) {
    for (const auto& [name, memory] : variables)
      symbols_[name] = reinterpret_cast<uint64_t>(memory.get());
  }

  std::unique_ptr<Kernel> run() {
    kernel_ = std::make_unique<Kernel>();
    read_header();
    read_body();
    for (auto& [instruction, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("no label " + label);
      kernel_->code[instruction].target = found->second;
    }
    kernel_->register_bytes = (kernel_->register_bytes + 63) / 64 * 64;
    return std::move(kernel_);
  }

 private:
  struct Register {
    int bytes;              // 0: a predicate
    int64_t location = -1;  // in the register file, once the register is used
  };

  void read_header() {
    const size_t name = text_.find(".entry") + 6, open = text_.find('(', name);
    kernel_->name = trimmed(text_.substr(name, open - name));
    const size_t close = text_.find(')', open);
    for (const std::string& parameter : split(text_.substr(open + 1, close - open - 1), ','))
      read_parameter(parameter);
    at_ = text_.find('{', close) + 1;
  }

  void read_parameter(const std::string& declaration) {
    std::stringstream in(declaration);
    uint32_t align = 1, bytes = 0;
    std::string name;
    for (std::string word; in >> word;) {
      if (word == ".param" || word == ".ptr") continue;
      if (word == ".align") {
        in >> align;
      } else if (word[0] == '.') {
        const auto found = type_bytes().find(word.substr(1));
        if (found == type_bytes().end()) throw Fault("parameter of type " + word);
        bytes = found->second;
      } else {
        name = word;
      }
    }
    if (name.empty()) return;
    const size_t bracket = name.find('[');
    if (bracket == std::string::npos) {
      align = bytes;
    } else {
      bytes *= std::atoi(name.c_str() + bracket + 1);
      name = name.substr(0, bracket);
    }
    const uint32_t offset = (kernel_->parameter_bytes + align - 1) / align * align;
    kernel_->parameters.push_back({offset, bytes});
    kernel_->parameter_bytes = offset + bytes;
    symbols_[name] = kParamBase + offset;
  }

  void skip_blanks() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  void read_body() {
    for (int depth = 1; depth > 0;) {
      skip_blanks();
      if (at_ >= text_.size()) throw Fault("the text ends inside a kernel");
      if (text_[at_] == '{') {
        ++depth, ++at_;
      } else if (text_[at_] == '}') {
        --depth, ++at_;
      } else {
        const size_t end = text_.find_first_of(";:", at_);
        const std::string statement = trimmed(text_.substr(at_, end - at_));
        at_ = end + 1;
        if (text_[end] == ':')
          labels_[statement] = static_cast<uint32_t>(kernel_->code.size());
        else
          read_statement(statement);
      }
    }
  }

  void read_statement(const std::string& statement) {
    if (statement.starts_with(".reg")) return declare(statement);
    if (statement.starts_with(".param")) return declare_argument(statement);
    if (statement.starts_with(".pragma") || statement.starts_with(".loc")) return;
    if (statement[0] == '.') throw Fault("not implemented: " + statement);
    decode(statement);
  }

  // .param type name: declares an argument of a call.
  void declare_argument(const std::string& statement) {
    std::stringstream in(statement);
    std::string word, type, name;
    in >> word >> type >> name;
    kernel_->argument_bytes = (kernel_->argument_bytes + 7) / 8 * 8;
    symbols_[name] = kArgumentBase + kernel_->argument_bytes;
    kernel_->argument_bytes += type_bytes().at(type.substr(1));
  }

  void declare(const std::string& statement) {
    std::stringstream in(statement.substr(4));
    std::string type, names;
    in >> type;
    std::getline(in, names);
    const int bytes = type_bytes().at(type.substr(1));
    for (std::string name : split(names, ',')) {
      name = trimmed(name);
      const size_t angle = name.find('<');
      if (angle == std::string::npos) {
        registers_[name] = {bytes};
        continue;
      }
      const int count = std::atoi(name.c_str() + angle + 1);
      for (int i = 0; i < count; ++i)
        registers_[name.substr(0, angle) + std::to_string(i)] = {bytes};
    }
  }

  // Reserves a location in the register file, or the number of a predicate (0 bytes).
  uint32_t new_location(int bytes) {
    if (bytes == 0) return kernel_->predicates++;
    const uint32_t location = kernel_->register_bytes;
    kernel_->register_bytes += kLanes * bytes;
    return location;
  }

  // The location of a constant.
  uint32_t constant(uint64_t bits, int bytes) {
    if (bytes == 0) bits = bits ? kAllLanes : 0;
    if (bytes > 0 && bytes < 8) bits &= (uint64_t{1} << 8 * bytes) - 1;
    const auto [at, is_new] = constants_.try_emplace({bits, bytes}, 0);
    if (is_new) {
      at->second = new_location(bytes);
      kernel_->constants.push_back({at->second, static_cast<uint8_t>(bytes), bits});
    }
    return at->second;
  }

  Register& find_register(const std::string& name) {
    const auto found = registers_.find(name);
    if (found == registers_.end()) throw Fault("no register " + name);
    Register& r = found->second;
    if (r.location < 0) r.location = new_location(r.bytes);
    return r;
  }

  // The location of an operand, or its number for a predicate. The operand is a register, an
  // immediate or the address of a symbol, and must have `bytes` bytes (0: a predicate).
  uint32_t operand(const std::string& text, int bytes, bool is_result) {
    if (text == "_" && is_result) return new_location(bytes);
    if (const int special = special_register(text); special >= 0) {
      if (is_result || bytes != 4) throw Fault("misuse of " + text);
      const uint32_t location = new_location(4);
      kernel_->specials.push_back({location, special});
      return location;
    }
    if (text[0] == '%') {
      const Register& r = find_register(text);
      if (r.bytes != bytes) throw Fault(text + " is of another size");
      return static_cast<uint32_t>(r.location);
    }
    if (is_result) throw Fault("result " + text + " is no register");
    if (const auto symbol = symbols_.find(text); symbol != symbols_.end())
      return constant(symbol->second, bytes);
    if (text[0] == '0' && std::strchr("fFdD", text[1]) && text[1]) {
      const bool wide = std::tolower(text[1]) == 'd';
      if (bytes != (wide ? 8 : 4)) throw Fault("immediate " + text + " of another size");
      return constant(std::strtoull(text.c_str() + 2, nullptr, 16), bytes);
    }
    if (text[0] == '-' || std::isdigit(static_cast<unsigned char>(text[0]))) {
      char* end = nullptr;
      const uint64_t value = std::strtoull(text.c_str(), &end, 0);  // modulo 2^64 if negative
      if (*end && std::string(end) != "U") throw Fault("immediate " + text);
      return constant(value, bytes);
    }
    // The only other symbol is the extern array of dynamic shared memory.
    return constant(kSharedBase, bytes);
  }

  // Splits the operands of an instruction. The characters {, }, |, ( and ) also separate them.
  static std::vector<std::string> operands_of(std::string text) {
    for (char& c : text)
      if (std::strchr("{}|()", c)) c = ',';
    std::vector<std::string> operands;
    for (const std::string& part : split(text, ','))
      if (!trimmed(part).empty()) operands.push_back(trimmed(part));
    return operands;
  }

  void decode(const std::string& statement) {
    Instruction in;
    in.text = statement;
    std::string rest = statement;
    if (rest[0] == '@') {
      in.guard_negated = rest[1] == '!';
      const size_t begin = in.guard_negated ? 2 : 1, end = rest.find_first_of(" \t");
      in.guard = static_cast<int>(operand(rest.substr(begin, end - begin), 0, false));
      rest = trimmed(rest.substr(end));
    }
    const size_t end = rest.find_first_of(" \t");
    std::string opcode = rest.substr(0, end);
    rest = end == std::string::npos ? "" : trimmed(rest.substr(end));
    try {
      if (opcode == "bra" || opcode == "bra.uni") {
        in.control = Control::kBranch;
        branches_.emplace_back(kernel_->code.size(), rest);
      } else if (opcode == "ret" || opcode == "exit") {
        in.control = Control::kExit;
      } else if (opcode.starts_with("ld.") || opcode.starts_with("st.") ||
                 opcode.starts_with("prefetch.")) {
        decode_access(in, opcode, rest);
      } else {
        decode_operation(in, opcode, rest);
      }
    } catch (const Fault& fault) {
      throw Fault(std::string(fault.what()) + " in \"" + statement + "\"");
    }
    kernel_->code.push_back(in);
  }

  void decode_operation(Instruction& in, std::string& opcode, const std::string& rest) {
    if (opcode.starts_with("mov.b") && rest.find('{') != std::string::npos)
      opcode += rest[0] == '{' ? " unpack" : " pack";
    auto parts = operands_of(rest);
    if (parts.size() == 2 && parts[1] == "%globaltimer") {  // each read gives another value
      opcode += " " + parts[1];
      parts.pop_back();
    }
    const bool is_call = opcode == "call.uni";
    if (is_call && parts.size() > 1) {  // result, function, arguments
      opcode += " " + parts[1];
      parts.erase(parts.begin(), parts.begin() + 2);
    }
    // The operand of this conversion may be a 64-bit register. Then its lower half is converted.
    if (opcode == "cvt.s64.s32" && registers_.count(parts[1]) && registers_[parts[1]].bytes == 8)
      opcode += " of a b64 register";
    const auto found = operations().find(opcode);
    if (found == operations().end()) throw Fault("not implemented: " + opcode);
    const Operation& operation = found->second;
    if (parts.size() != operation.operands.size())
      throw Fault(opcode + " with " + std::to_string(parts.size()) + " operands");
    in.run = operation.run;
    in.control = operation.control;
    in.members = operation.members;
    static constexpr int kBytes[] = {0, 2, 4, 8};
    const bool has_result = operation.control != Control::kBlockBarrier &&
                            operation.control != Control::kWarpBarrier && !is_call;
    for (size_t i = 0; i < parts.size(); ++i) {
      const int bytes = kBytes[static_cast<int>(operation.operands[i])];
      in.op[i] = operand(parts[i], bytes, has_result && i == 0);
    }
  }

  // Decodes ld, st and prefetch. The qualifiers may be in any order. An address without a state
  // space counts as an address of global memory, and each load and store checks that it is one.
  void decode_access(Instruction& in, const std::string& opcode, const std::string& rest) {
    Access& a = in.access;
    static const std::map<std::string, Space> spaces = {
        {"global", Space::kGlobal}, {"shared", Space::kShared}, {"param", Space::kParam}};
    const auto words = split(opcode, '.');
    bool has_scope = false;
    for (size_t i = 1; i < words.size(); ++i) {
      const std::string word = words[i].substr(0, words[i].find("::"));
      if (const auto space = spaces.find(word); space != spaces.end()) {
        a.space = space->second;
      } else if (word == "v2" || word == "v4") {
        a.elements = static_cast<uint8_t>(word[1] - '0');
      } else if (word == "relaxed") {
        a.relaxed = true;
      } else if (word == "gpu" || word == "sys") {
        has_scope = true;
      } else if (type_bytes().count(word)) {
        a.bytes = static_cast<uint8_t>(type_bytes().at(word));
        a.is_signed = word[0] == 's';
      } else if (!(words[0] == "prefetch" && word == "L2")) {
        throw Fault("not implemented: ." + words[i]);
      }
    }
    if (a.relaxed != has_scope)
      throw Fault("not implemented: a scope without .relaxed, or .relaxed without a scope");
    const size_t open = rest.find('['), close = rest.find(']');
    read_address(in, trimmed(rest.substr(open + 1, close - open - 1)));
    in.run = operations().at(words[0]).run;
    if (words[0] == "prefetch") return;
    const bool load = words[0] == "ld";
    const auto values = operands_of(load ? rest.substr(0, open) : rest.substr(close + 1));
    if (values.size() != a.elements || a.bytes == 0)
      throw Fault("wrong number or type of operands");
    for (int i = 0; i < a.elements; ++i) {
      int bytes = std::max<int>(a.bytes, 2);  // the register may be wider than the type
      if (values[i][0] == '%') bytes = find_register(values[i]).bytes;
      if (bytes < a.bytes) throw Fault("the register is narrower than the type");
      a.register_bytes[i] = static_cast<uint8_t>(bytes);
      in.op[1 + i] = operand(values[i], bytes, load);
    }
  }

  // Decodes an address: register, register+n, symbol or symbol+n.
  void read_address(Instruction& in, const std::string& text) {
    const size_t plus = text.find('+');
    const std::string base = trimmed(text.substr(0, plus));
    if (plus != std::string::npos)
      in.access.displacement = std::strtoll(text.c_str() + plus + 1, nullptr, 0);
    in.access.base_bytes = 8;
    if (base[0] == '%') in.access.base_bytes = static_cast<uint8_t>(find_register(base).bytes);
    in.op[0] = operand(base, in.access.base_bytes, false);
  }

  std::string text_;
  size_t at_ = 0;
  std::unique_ptr<Kernel> kernel_;
  std::map<std::string, Register> registers_;
  std::map<std::string, uint64_t> symbols_;
  std::map<std::string, uint32_t> labels_;
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

std::unique_ptr<Kernel> parse_kernel(const std::string& text, const Variables& variables) {
  return Parser(text, variables).run();
}

std::map<std::string, std::string> split_module(const std::string& text, Variables& variables) {
  static const std::regex variable(
      R"(\n\.global \.align \d+ \.b8 ([\w$]+)\[(\d+)\](?: = \{([^}]*)\})?;)");
  for (std::sregex_iterator at(text.begin(), text.end(), variable), end; at != end; ++at) {
    auto memory = std::make_unique<unsigned char[]>(std::stoul((*at)[2]));
    size_t i = 0;
    for (const std::string& byte : split((*at)[3], ',')) memory[i++] = std::stoi(byte);
    variables[(*at)[1]] = std::move(memory);
  }
  std::map<std::string, std::string> kernels;
  const auto next_entry = [&](size_t from) { return text.find(".entry ", from); };
  for (size_t at = next_entry(0); at != std::string::npos;) {
    const size_t next = next_entry(at + 1), name = at + 7;
    const size_t close = text.rfind('}', next == std::string::npos ? next : next - 1);
    kernels[trimmed(text.substr(name, text.find('(', name) - name))] =
        text.substr(at, close + 1 - at);
    at = next;
  }
  return kernels;
}

// For example walk_kernel<PersistentForward<Tf32Mma, 8, 8> >.
std::string Kernel::short_name() const {
  int status = 0;
  char* const demangled = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string text = status == 0 ? demangled : name;
  std::free(demangled);
  text = text.substr(0, text.rfind(">(") + 1);
  for (const char* const noise :
       {"fastlstm::", "(anonymous namespace)::", "(int)", "(bool)", "void "})
    for (size_t at; (at = text.find(noise)) != std::string::npos;)
      text.erase(at, std::string(noise).size());
  const size_t open = text.find('<'), scope = text.rfind("::", open);
  return scope == std::string::npos ? text : text.substr(scope + 2);
}

}  // namespace ptx
