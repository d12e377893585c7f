// The scheduler of the interpreter: blocks, warps, groups of lanes, barriers and deadlocks.
#include "machine.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace ptx {

Options& options() {
  static Options o;
  return o;
}

void fault(const Warp& warp, const Instruction& in, int lane, const std::string& what) {
  std::ostringstream out;
  out << warp.machine->launch.kernel->short_name() << ", block " << warp.block->index << ", thread "
      << warp.index * kLanes + lane << ": " << what << " at \"" << in.text << '"';
  throw Fault(out.str());
}

void Machine::deliver(size_t index) {
  const Delayed store = delayed[index];
  delayed[index] = delayed.back();
  delayed.pop_back();
  std::memcpy(reinterpret_cast<void*>(store.address), store.value, store.bytes);
  without_progress = 0;
}

void Machine::deliver_to(uint64_t address, uint32_t bytes) {
  for (size_t i = delayed.size(); i-- > 0;)
    if (delayed[i].address < address + bytes && address < delayed[i].address + delayed[i].bytes)
      deliver(i);
}

namespace {

Dim3 unravel(uint32_t i, const Dim3& size) {
  return {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
}

uint32_t special_value(int which, const Launch& launch, const Block& block, uint32_t thread) {
  if (which == kLaneid) return thread % kLanes;
  const Dim3 values[] = {unravel(thread, launch.block), unravel(block.index, launch.grid),
                         launch.block, launch.grid};
  const Dim3& d = values[which / 3];
  return which % 3 == 0 ? d.x : which % 3 == 1 ? d.y : d.z;
}

// Fills constants and special registers with their values, and all others with random values.
void fill_registers(Warp& warp, const Launch& launch) {
  const Kernel& kernel = *launch.kernel;
  std::minstd_rand& random = warp.machine->random;
  warp.registers.resize(kernel.register_bytes);
  for (size_t i = 0; i + 4 <= warp.registers.size(); i += 4) {
    const uint32_t junk = 0xc0000000u ^ static_cast<uint32_t>(random());
    std::memcpy(&warp.registers[i], &junk, 4);
  }
  warp.arguments.assign(size_t{kLanes} * kernel.argument_bytes, 0xcb);
  warp.predicates.resize(kernel.predicates);
  for (uint32_t& p : warp.predicates) p = static_cast<uint32_t>(random());
  for (const Constant& c : kernel.constants) {
    if (c.bytes == 0) warp.predicates[c.at] = static_cast<uint32_t>(c.bits);
    for (int lane = 0; lane < kLanes; ++lane)
      std::memcpy(&warp.registers[c.at + lane * c.bytes], &c.bits, c.bytes);
  }
  for (const SpecialRegister& s : kernel.specials)
    for (uint32_t lane = 0; lane < kLanes; ++lane)
      warp.lanes<uint32_t>(s.at)[lane] =
          special_value(s.which, launch, *warp.block, warp.index * kLanes + lane);
}

void start(Block& block, Machine& m, uint32_t index) {
  const Launch& launch = m.launch;
  const auto threads = static_cast<uint32_t>(launch.block.count());
  block.index = index;
  block.shared.assign(launch.shared_bytes, 0xff);
  block.written.assign(launch.shared_bytes, 0);
  block.shadow.assign(launch.shared_bytes / 4 + 1, {});
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.warps_alive = static_cast<uint32_t>(block.warps.size());
  for (uint32_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    warp.machine = &m, warp.block = &block, warp.index = w;
    const uint32_t lanes = std::min<uint32_t>(threads - w * kLanes, kLanes);
    warp.alive = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
    warp.slow = m.random() % 2;
    warp.groups = {{0, warp.alive, 0, Group::kReady}};
    fill_registers(warp, launch);
  }
}

void release_block_barrier_if_complete(Block& block) {
  if (block.warps_waiting == 0 || block.warps_waiting != block.warps_alive) return;
  ++block.epoch;
  block.warps_waiting = 0;
  for (Warp& warp : block.warps) {
    if (!warp.at_block_barrier) continue;
    warp.at_block_barrier = false;
    for (Group& g : warp.groups) ++g.pc, g.state = Group::kReady;
  }
}

// A group arrives at bar.sync. Returns whether all threads of the warp have arrived.
bool enter_block_barrier(Warp& warp, Group& g, const Instruction& in) {
  if (g.lanes != warp.alive) {
    g.state = Group::kAtBlockBarrier;
    return false;
  }
  if (*warp.lanes<uint32_t>(in.op[0]) != 0) fault(warp, in, 0, "only barrier 0 is implemented");
  warp.at_block_barrier = true;
  g.state = Group::kAtBlockBarrier;
  ++warp.block->warps_waiting;
  warp.machine->without_progress = 0;
  return true;
}

// The mask of the lanes that must execute a barrier or a collective together.
uint32_t members_of(Warp& warp, const Group& g, const Instruction& in) {
  if (in.members < 0) return kAllLanes;
  const uint32_t* const mask = warp.lanes<uint32_t>(in.op[in.members]);
  const int first = __builtin_ctz(g.lanes);
  for_lanes(g.lanes, [&](int lane) {
    if (mask[lane] != mask[first]) fault(warp, in, lane, "lanes have different member masks");
    if (!(mask[lane] >> lane & 1)) fault(warp, in, lane, "a lane is not in its member mask");
  });
  return mask[first];
}

// A group arrives at bar.warp.sync. Returns whether all members have arrived and continue.
bool pass_warp_barrier(Warp& warp, Group& g, const Instruction& in) {
  const uint32_t members = members_of(warp, g, in);
  uint32_t here = g.lanes;
  for (const Group& other : warp.groups)
    if (other.state == Group::kAtWarpBarrier && other.members == members) here |= other.lanes;
  g.members = members;
  g.state = Group::kAtWarpBarrier;
  if (here != (members & warp.alive)) return false;
  for (Group& other : warp.groups)
    if (other.state == Group::kAtWarpBarrier && other.members == members)
      ++other.pc, other.state = Group::kReady;
  ++warp.epoch;
  warp.machine->without_progress = 0;
  return true;
}

void drop_empty(Warp& warp) {
  std::erase_if(warp.groups, [](const Group& g) { return !g.lanes; });
}

// Joins groups that are at the same instruction. A joined group checks again whether it must wait.
void merge(Warp& warp) {
  auto& groups = warp.groups;
  for (size_t i = 0; i < groups.size(); ++i)
    for (size_t k = i + 1; k < groups.size(); ++k)
      if (groups[k].lanes && groups[i].pc == groups[k].pc) {
        groups[i].lanes |= groups[k].lanes;
        groups[i].state = Group::kReady;
        groups[k].lanes = 0;
      }
  drop_empty(warp);
}

// Chooses the group that runs next: usually the group that is farthest behind, so that the groups
// meet again. With Options::random_lanes any group may run, and some of its lanes may run ahead.
Group* choose(Warp& warp) {
  Machine& m = *warp.machine;
  const bool random_lanes = options().random_lanes;
  if (random_lanes && m.random() % 8 == 0) {  // some lanes run ahead
    Group& g = warp.groups[m.random() % warp.groups.size()];
    const uint32_t ahead_lanes = g.lanes & static_cast<uint32_t>(m.random() * 2654435761u);
    if (g.state == Group::kReady && ahead_lanes && ahead_lanes != g.lanes) {
      Group ahead = g;
      ahead.lanes = ahead_lanes;
      g.lanes &= ~ahead_lanes;
      warp.groups.push_back(ahead);
    }
  }
  std::vector<Group*> ready;
  for (Group& g : warp.groups)
    if (g.state == Group::kReady) ready.push_back(&g);
  if (random_lanes) return ready[m.random() % ready.size()];
  // Sometimes another group runs, because the group farthest behind may wait for a lane ahead.
  if (ready.size() > 1 && m.random() % 64 == 0) return ready[m.random() % ready.size()];
  return *std::min_element(ready.begin(), ready.end(),
                           [](const Group* a, const Group* b) { return a->pc < b->pc; });
}

// The next instruction at which another group stands.
uint32_t meeting_point(const Warp& warp, const Group& mine) {
  uint32_t at = ~0u;
  for (const Group& g : warp.groups)
    if (&g != &mine && g.pc > mine.pc) at = std::min(at, g.pc);
  return at;
}

void exit_lanes(Warp& warp, Group& g, uint32_t lanes) {
  warp.alive &= ~lanes;
  g.lanes &= ~lanes;
  warp.machine->without_progress = 0;
  for (Group& other : warp.groups) other.state = Group::kReady;  // they may have waited for `lanes`
  drop_empty(warp);
  if (warp.alive) return;
  --warp.block->warps_alive;
  release_block_barrier_if_complete(*warp.block);
}

// Executes up to `budget` instructions of a group and returns how many it executed.
int run_group(Warp& warp, Group& g, int budget) {
  const std::vector<Instruction>& code = warp.machine->launch.kernel->code;
  const bool is_only_group = warp.groups.size() == 1;
  const uint32_t meeting = is_only_group || options().random_lanes ? ~0u : meeting_point(warp, g);
  const uint32_t lanes = g.lanes;
  uint32_t pc = g.pc;
  int executed = 0;
  bool stopped = false;  // if true, g.pc is already correct or g no longer exists
  while (!stopped && executed < budget && pc < meeting) {
    const Instruction& in = code[pc];
    uint32_t active = lanes;
    if (in.guard >= 0) {
      const uint32_t p = warp.predicates[in.guard];
      active &= in.guard_negated ? ~p : p;
    }
    ++executed;
    if (in.control == Control::kPlain) {
      if (active) in.run(warp, in, active);
      ++pc;
      continue;
    }
    g.pc = pc;
    if (in.control == Control::kBranch) {
      if (active && active != lanes) {
        g.pc = pc + 1;
        g.lanes = lanes & ~active;
        warp.groups.push_back({in.target, active, 0, Group::kReady});
        stopped = true;
      } else {
        g.pc = pc = active ? in.target : pc + 1;
        stopped = active && !is_only_group;  // another group may be at the target
      }
    } else if (in.control == Control::kExit) {
      g.pc = ++pc;
      stopped = active;
      if (active) exit_lanes(warp, g, active);
    } else if (active != lanes) {
      fault(warp, in, 0, "the guard is true for some lanes and false for others");
    } else if (in.control == Control::kBlockBarrier) {
      if (enter_block_barrier(warp, g, in)) release_block_barrier_if_complete(*warp.block);
      stopped = true;
    } else if (in.control == Control::kWarpBarrier) {
      stopped = !pass_warp_barrier(warp, g, in) || !is_only_group;
      pc = g.pc;
    } else if (lanes != (members_of(warp, g, in) & warp.alive)) {
      g.state = Group::kAtCollective;
      stopped = true;
    } else {
      in.run(warp, in, lanes);
      ++pc;
    }
  }
  if (!stopped) g.pc = pc;
  return executed;
}

bool is_blocked(Warp& warp) {
  if (!warp.at_block_barrier && warp.groups.size() > 1) merge(warp);
  return warp.at_block_barrier ||
         std::none_of(warp.groups.begin(), warp.groups.end(),
                      [](const Group& g) { return g.state == Group::kReady; });
}

[[noreturn]] void report_standstill(const Machine& m, const char* what) {
  std::ostringstream out;
  out << m.launch.kernel->short_name() << ": " << what;
  int printed = 0;
  for (const Block& block : m.blocks)
    for (const Warp& warp : block.warps)
      for (const Group& g : warp.groups)
        if (printed++ < 6)
          out << "\n    block " << block.index << ", warp " << warp.index << ", lanes " << std::hex
              << g.lanes << std::dec << " at \"" << m.launch.kernel->code[g.pc].text << '"';
  throw Fault(out.str());
}

// Slow warps are chosen less often, until the other warps have made no progress for long.
size_t choose_warp(Machine& m, const std::vector<Warp*>& running) {
  size_t pick = m.random() % running.size();
  const int max_tries = m.without_progress < options().patience / 2 ? 4 : 0;
  for (int tries = 0; tries < max_tries && running[pick]->slow; ++tries)
    pick = m.random() % running.size();
  return pick;
}

// Runs the blocks first .. first + count - 1 together, to their end.
void run_blocks(Machine& m, uint32_t first, uint32_t count) {
  m.blocks.clear();
  m.blocks.resize(count);
  std::vector<Warp*> running;
  for (uint32_t b = 0; b < count; ++b) {
    start(m.blocks[b], m, first + b);
    for (Warp& warp : m.blocks[b].warps) running.push_back(&warp);
  }
  m.without_progress = 0;
  uint64_t blocked_picks = 0;  // the number of blocked warps chosen since a warp ran
  while (!running.empty()) {
    const size_t pick = choose_warp(m, running);
    while (!m.delayed.empty() && m.random() % 4 != 0) m.deliver(m.random() % m.delayed.size());
    Warp& warp = *running[pick];
    if (is_blocked(warp)) {
      if (++blocked_picks > 4 * running.size() &&
          std::all_of(running.begin(), running.end(), [](Warp* w) { return is_blocked(*w); }))
        report_standstill(m, "deadlock, all threads wait at barriers");
      continue;
    }
    blocked_picks = 0;
    for (int budget = 1 + static_cast<int>(m.random() % 400); budget > 0 && warp.alive;) {
      if (is_blocked(warp)) break;
      Group* const g = choose(warp);
      const int max_count = options().random_lanes ? 1 + static_cast<int>(m.random() % 32) : budget;
      const int executed = run_group(warp, *g, std::min(max_count, budget));
      budget -= std::max(executed, 1);
      m.without_progress += executed;
    }
    if (m.without_progress > options().patience)
      report_standstill(m, "no progress, threads wait for values that no thread stores");
    if (!warp.alive) {
      running[pick] = running.back();
      running.pop_back();
    }
  }
  while (!m.delayed.empty()) m.deliver(0);
}

}  // namespace

void run(const Launch& launch) {
  const RecordingPause pause;
  static uint32_t launch_number = 0;
  Machine m{launch, ++launch_number, 0, {}, {}, {}};
  m.random.seed((options().seed + options().seed_offset) * 7919 + 1);
  const auto blocks = static_cast<uint32_t>(launch.grid.count());
  const uint32_t at_once = launch.cooperative ? blocks : 4;
  for (uint32_t first = 0; first < blocks; first += at_once)
    run_blocks(m, first, std::min(at_once, blocks - first));
}

}  // namespace ptx
