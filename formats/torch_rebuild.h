// Turns the calls of a PyTorch pickle into values: what `torch._utils._rebuild_tensor_v2` and the other known names
// stand for, storages by reference, and the budgets that keep a small pickle small.
//
// Delicate: arguments come from the file, in any number and of any kind; each is checked before it is used. The file's
// position is set by the machine in torch_pickle.cpp before every call, for errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "formats/torch_globals.h"
#include "formats/torch_pickle.h"

namespace castor::formats {

/// Makes the values of one pickle.
class TorchRebuilder {
 public:
  ///   pickle_bytes  length of the pickle: what may be copied in all
  TorchRebuilder(std::string file, std::uint64_t pickle_bytes, const PickleOptions& options)
      : file_(std::move(file)), copies_left_(pickle_bytes), options_(options) {}

  /// Sets where in the file the next errors are.
  void set_position(std::uint64_t file_offset) { position_ = file_offset; }
  /// Throws FormatError at the position.
  [[noreturn]] void fail(const std::string& what) const;

  /// A new value. Throws FormatError beyond max_values.
  template <class Data>
  const PickleValue* add(Data&& data) {
    count_values(1);
    PickleValue& value = tree_.values.emplace_back();
    value.data = std::forward<Data>(data);
    value.number = static_cast<std::uint32_t>(tree_.values.size() - 1);
    return &value;
  }
  /// The same value, to be changed.
  PickleValue& changeable(const PickleValue* value) { return tree_.values[value->number]; }

  /// A class or function by name; refused if it is neither in the table nor inert.
  const PickleValue* global(std::string_view module, std::string_view name);
  /// What calling `callee` with the tuple `args` stands for.
  const PickleValue* call(const PickleValue* callee, const PickleValue* args);
  /// The storage that a persistent id, a tuple, refers to.
  const PickleValue* storage(const PickleValue* id);
  /// Gives an object its state: kept for inert objects, left out for dicts (`_metadata` of a state dict).
  void set_state(const PickleValue* target, const PickleValue* state);

  /// The finished tree with this root. Throws FormatError if it fails find_pickle_problem.
  PickleTree finish(const PickleValue* root);

 private:
  using Args = SegmentedList<const PickleValue*>;

  void count_values(std::size_t values);
  void count_copy(std::uint64_t items);
  const PickleValue* call_inert(const PickleObject& callee, const PickleValue* args);
  const PickleValue* call_bytes(const TorchGlobal& callee, const Args& args);
  const PickleValue* call_device(const Args& args);
  const PickleValue* rebuild_tensor(const TorchGlobal& callee, const Args& args);
  const PickleValue* rebuild_parameter(const TorchGlobal& callee, const Args& args);
  std::string decode_latin1(const std::string& text);
  std::vector<std::int64_t> sizes(const PickleValue* value, std::string_view what) const;
  std::int64_t natural(const PickleValue* value, std::string_view what) const;
  bool boolean(const PickleValue* value, std::string_view what) const;
  void check_extent(const TorchTensor& tensor) const;
  [[noreturn]] void fail_args(std::string_view name, std::string_view expected, const Args& args) const;

  std::string file_;
  std::uint64_t position_ = 0;
  std::size_t values_ = 0;
  std::uint64_t copies_left_;
  const PickleOptions& options_;
  PickleTree tree_;
};

}  // namespace castor::formats
