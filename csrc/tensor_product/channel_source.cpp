#include "tensor_product/channel_source.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <tuple>

#include "channel_plan.cuh"

namespace hamfast {
namespace {

struct GpuBlock {
  int64_t n, d, start, mul, first, offset, group;
};
struct GpuUnit {
  int64_t role, first, width;
};
struct GpuRole {
  int64_t group, first;
};

// Blocks side by side in the registers of a thread, in groups of at most `most` registers.
void assign_registers(std::vector<GpuBlock>& blocks, int64_t most) {
  int64_t group = 0, start = 0;
  for (GpuBlock& block : blocks) {
    if (start > 0 && start + block.d > most) ++group, start = 0;
    block.group = group;
    block.start = start;
    start += block.d;
  }
}

// Cuts the channels of each group where a multiplicity ends, then into powers of two.
void cut(const std::vector<GpuBlock>& blocks, std::vector<GpuUnit>& units,
         std::vector<GpuRole>& roles) {
  const int64_t groups = blocks.empty() ? 0 : blocks.back().group + 1;
  for (int64_t group = 0; group < groups; ++group) {
    std::set<int64_t> ends;
    for (const GpuBlock& block : blocks)
      if (block.group == group && block.n > 0) ends.insert(block.n);
    int64_t first = 0;
    for (const int64_t end : ends) {
      roles.push_back({group, first});
      while (first < end) {
        int64_t width = kWarp;
        while (width > end - first) width /= 2;
        units.push_back({static_cast<int64_t>(roles.size()) - 1, first, width});
        first += width;
      }
    }
  }
}

class Writer {
 public:
  std::string text;
  template <class... Numbers>
  void line(const char* format, Numbers... numbers) {
    char buffer[256];
    std::snprintf(buffer, sizeof(buffer), format, numbers...);
    text += buffer;
    text += '\n';
  }
  void constant(const char* name, int64_t value) {
    line("constexpr int %s = %lld;", name, (long long)value);
  }
  // An array, with one row of zeros if there is nothing: arrays have no length 0.
  template <class Rows, class F>
  void array(const char* type, const char* name, const Rows& rows, F&& row) {
    line("HAMFAST_CONSTANT constexpr %s %s[] = {", type, name);
    for (const auto& r : rows) row(r);
    if (rows.empty()) line("    {},");
    line("};");
  }
};

void write_blocks(Writer& out, const char* name, const std::vector<GpuBlock>& blocks) {
  using ll = long long;
  out.array("Block", name, blocks, [&](const GpuBlock& b) {
    out.line("    {%lld, %lld, %lld, %lld, %lld, %lld, %lld},", ll(b.n), ll(b.d), ll(b.start),
             ll(b.mul), ll(b.first), ll(b.offset), ll(b.group));
  });
}

int64_t registers_of(const std::vector<GpuBlock>& blocks) {
  int64_t most = 1;
  for (const GpuBlock& block : blocks) most = std::max(most, block.start + block.d);
  return most;
}

// Tasks with weights of the warps' role that has most: `block` is where a task's channels are cut.
int most_weighted(const ChannelTables& tables, const std::vector<GpuBlock>& block,
                  const std::vector<GpuRole>& roles) {
  int most = 0;
  for (const GpuRole& role : roles) {
    int count = 0;
    for (size_t t = 0; t < tables.tasks.size(); ++t)
      count +=
          tables.tasks[t].w_offset >= 0 && block[t].group == role.group && block[t].n > role.first;
    most = std::max(most, count);
  }
  return most;
}

}  // namespace

ChannelSource channel_source(const ChannelTables& tables, const ChannelVariant& variant) {
  using ll = long long;
  std::vector<GpuBlock> x_blocks, g_blocks;
  for (const ChannelBlock& b : tables.x_blocks)
    x_blocks.push_back({b.mul, b.d, 0, b.mul, 0, b.offset, 0});
  std::vector<int64_t> task_block(tables.tasks.size());
  std::vector<bool> written(tables.g_blocks.size());
  for (size_t t = 0; t < tables.tasks.size(); ++t) {
    const ChannelTask& task = tables.tasks[t];
    const ChannelBlock& block = tables.g_blocks[task.g_block];
    written[task.g_block] = true;
    auto same = [&](const GpuBlock& g) {
      return g.offset == block.offset && g.first == task.g_first;
    };
    const auto found = std::find_if(g_blocks.begin(), g_blocks.end(), same);
    task_block[t] = found - g_blocks.begin();
    if (found == g_blocks.end())
      g_blocks.push_back({task.n, block.d, 0, block.mul, task.g_first, block.offset, 0});
  }
  for (size_t b = 0; b < written.size(); ++b)  // zeros are written, too
    if (!written[b]) {
      const ChannelBlock& block = tables.g_blocks[b];
      g_blocks.push_back({block.mul, block.d, 0, block.mul, 0, block.offset, 0});
    }
  const bool is_double = variant.storage == int64_t(Storage::float64);
  // Registers that hold a row of one channel. Backward, x is held beside its gradient, and tangents
  // beside both.
  const int64_t most = variant.forward ? (is_double || variant.hidden ? 32 : 64)
                                       : (variant.tangents ? 16 : 32) / (is_double ? 2 : 1);
  assign_registers(x_blocks, most);
  assign_registers(g_blocks, most);
  std::vector<GpuUnit> units;
  std::vector<GpuRole> roles;
  cut(variant.forward ? g_blocks : x_blocks, units, roles);

  Writer out;
  out.line("// Written by csrc/tensor_product/channel_source.cpp.");
  out.line("namespace hamfast::channel {");
  out.line("#define HAMFAST_WEIGHTS_MADE %d", int(variant.hidden > 0));
  out.line("constexpr Storage kStorage = Storage(%d);", int(variant.storage));
  out.constant("kHidden", variant.hidden);
  out.constant("kPasses", variant.passes);
  out.line("constexpr bool kForward = %s, kSharedWeights = %s;", variant.forward ? "true" : "false",
           variant.shared_weights ? "true" : "false");
  out.line("constexpr int kOperands = %lld, kTangents = %lld, kWanted = %lld;  // bits x, y, w, g",
           ll(variant.operands), ll(variant.tangents), ll(variant.wanted));
  out.line("constexpr Layout kXLayout = Layout(%d), kGLayout = Layout(%d);", int(variant.x_layout),
           int(variant.g_layout));
  out.line("constexpr int64_t kXDim = %lld, kYDim = %lld, kWDim = %lld, kGDim = %lld;",
           ll(tables.dims.x), ll(tables.dims.y), ll(tables.dims.w), ll(tables.dims.g));
  out.constant("kXBlocks", x_blocks.size());
  out.constant("kGBlocks", g_blocks.size());
  out.constant("kXRegisters", registers_of(x_blocks));
  out.constant("kGRegisters", registers_of(g_blocks));
  write_blocks(out, "x_blocks", x_blocks);
  write_blocks(out, "g_blocks", g_blocks);
  out.constant("kRoles", roles.size());
  out.array("Role", "roles", roles,
            [&](const GpuRole& k) { out.line("    {%lld, %lld},", ll(k.group), ll(k.first)); });
  out.constant("kUnits", units.size());
  out.array("Unit", "units", units, [&](const GpuUnit& u) {
    out.line("    {%lld, %lld, %lld},", ll(u.role), ll(u.first), ll(u.width));
  });

  struct Value {
    int64_t i, j, k;
    double value;
  };
  std::vector<Value> values;
  std::vector<std::tuple<int64_t, int64_t>> ranges;
  for (const ChannelTask& t : tables.tasks) {
    const size_t begin = values.size();
    const double* coupling = tables.coupling.data() + t.coupling_at;
    if (t.diagonal) {
      for (int64_t i = 0; i < t.d1; ++i) values.push_back({i, 0, i, coupling[0]});
    } else {
      for (int64_t n = t.entries_begin; n < t.entries_end; ++n) {
        const CouplingEntry& e = tables.entries[n];
        values.push_back({e.i, e.j, e.k, coupling[e.at]});
      }
    }
    ranges.push_back({begin, values.size()});
  }
  out.constant("kTasks", tables.tasks.size());
  std::vector<size_t> order(tables.tasks.size());
  for (size_t t = 0; t < order.size(); ++t) order[t] = t;
  out.array("Task", "tasks", order, [&](size_t n) {
    const ChannelTask& t = tables.tasks[n];
    out.line("    {%lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld},", ll(t.n),
             ll(t.d1), ll(t.d2), ll(t.d3), ll(t.x_block), ll(task_block[n]), ll(t.y_offset),
             ll(t.w_offset), ll(t.w_stride), ll(std::get<0>(ranges[n])),
             ll(std::get<1>(ranges[n])));
  });
  out.array("Entry", "entries", values, [&](const Value& v) {
    out.line("    {%lld, %lld, %lld, %.17g},", ll(v.i), ll(v.j), ll(v.k), v.value);
  });
  out.line("}  // namespace hamfast::channel");
  int64_t shared_bytes = 0;
  if (variant.hidden) {
    std::vector<GpuBlock> cut_at;
    for (size_t t = 0; t < tables.tasks.size(); ++t)
      cut_at.push_back(variant.forward ? g_blocks[task_block[t]]
                                       : x_blocks[tables.tasks[t].x_block]);
    const int registers = static_cast<int>(registers_of(variant.forward ? g_blocks : x_blocks));
    shared_bytes =
        sizeof(float) *
        channel::shared_floats(variant.hidden, most_weighted(tables, cut_at, roles), registers);
  }
  return {out.text, static_cast<int64_t>(units.size()), shared_bytes};
}

}  // namespace hamfast
