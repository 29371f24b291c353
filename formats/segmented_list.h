// A list that grows without ever making a large piece of memory, for what readers find in files they do not trust.
//
// A vector doubles: of a hostile file of n bytes it may ask for many times n at once. Here elements lie in segments of
// 1, 2, 4, ... elements up to 4 KiB, so that the largest piece is a segment or, for millions of elements, the table of
// the segments. Delicate: segments never move, and neither do elements: references stay valid until their element goes.
#pragma once

#include <bit>
#include <compare>
#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

namespace castor::formats {

/// Most bytes of a segment of more than one element.
inline constexpr std::size_t kSegmentBytes = 4096;

/// A sequence with appending, access by index and random-access iterators, which a change of the list's end leaves
/// valid. Elements of an empty list take no memory.
template <class T>
class SegmentedList {
  template <class List, class Value>
  class Iterator;

 public:
  using value_type = T;
  using iterator = Iterator<SegmentedList, T>;
  using const_iterator = Iterator<const SegmentedList, const T>;

  SegmentedList() = default;
  SegmentedList(std::initializer_list<T> values) { append(values); }

  /// Number of elements.
  std::size_t size() const { return segments_.empty() ? 0 : first_of(segments_.size() - 1) + segments_.back().size(); }
  bool empty() const { return segments_.empty(); }

  T& operator[](std::size_t index) {
    const auto [segment, place] = locate(index);
    return segments_[segment][place];
  }
  const T& operator[](std::size_t index) const {
    const auto [segment, place] = locate(index);
    return segments_[segment][place];
  }
  T& front() { return segments_.front().front(); }
  const T& front() const { return segments_.front().front(); }
  T& back() { return segments_.back().back(); }
  const T& back() const { return segments_.back().back(); }

  iterator begin() { return {this, 0}; }
  iterator end() { return {this, size()}; }
  const_iterator begin() const { return {this, 0}; }
  const_iterator end() const { return {this, size()}; }

  /// Appends an element made from `arguments` and returns it.
  template <class... Arguments>
  T& emplace_back(Arguments&&... arguments) {
    if (segments_.empty() || segments_.back().size() == capacity_of(segments_.size() - 1)) segments_.emplace_back();
    std::vector<T>& last = segments_.back();
    last.reserve(capacity_of(segments_.size() - 1));
    return last.emplace_back(std::forward<Arguments>(arguments)...);
  }
  void push_back(const T& value) { emplace_back(value); }
  void push_back(T&& value) { emplace_back(std::move(value)); }
  /// Appends copies of all elements of a range.
  template <class Range>
  void append(const Range& range) {
    for (const T& value : range) emplace_back(value);
  }

  friend bool operator==(const SegmentedList& a, const SegmentedList& b) { return a.segments_ == b.segments_; }

  /// Removes the last element.
  void pop_back() {
    segments_.back().pop_back();
    if (segments_.back().empty()) segments_.pop_back();
  }
  /// Removes all elements from number `count` on.
  void truncate(std::size_t count) {
    while (size() > count) pop_back();
  }

 private:
  template <class List, class Value>
  class Iterator {
   public:
    using iterator_category = std::random_access_iterator_tag;
    using value_type = std::remove_const_t<Value>;
    using difference_type = std::ptrdiff_t;
    using pointer = Value*;
    using reference = Value&;

    Iterator() = default;
    Iterator(List* list, std::size_t index) : list_(list), index_(static_cast<difference_type>(index)) {}

    reference operator*() const { return (*list_)[static_cast<std::size_t>(index_)]; }
    pointer operator->() const { return &**this; }
    reference operator[](difference_type steps) const { return *(*this + steps); }
    Iterator& operator+=(difference_type steps) {
      index_ += steps;
      return *this;
    }
    Iterator& operator-=(difference_type steps) { return *this += -steps; }
    Iterator& operator++() { return *this += 1; }
    Iterator& operator--() { return *this -= 1; }
    Iterator operator++(int) {
      Iterator before = *this;
      ++*this;
      return before;
    }
    Iterator operator--(int) {
      Iterator before = *this;
      --*this;
      return before;
    }
    friend Iterator operator+(Iterator at, difference_type steps) { return at += steps; }
    friend Iterator operator+(difference_type steps, Iterator at) { return at += steps; }
    friend Iterator operator-(Iterator at, difference_type steps) { return at -= steps; }
    friend difference_type operator-(const Iterator& a, const Iterator& b) { return a.index_ - b.index_; }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.index_ == b.index_; }
    friend std::strong_ordering operator<=>(const Iterator& a, const Iterator& b) { return a.index_ <=> b.index_; }

   private:
    List* list_ = nullptr;
    difference_type index_ = 0;
  };

  // Segment number k has 2^k elements, from number `full_shift()` on all have as many as fit kSegmentBytes.
  static constexpr std::size_t full_shift() {
    return sizeof(T) >= kSegmentBytes ? 0 : static_cast<std::size_t>(std::bit_width(kSegmentBytes / sizeof(T))) - 1;
  }
  static constexpr std::size_t capacity_of(std::size_t segment) {
    return std::size_t{1} << (segment < full_shift() ? segment : full_shift());
  }
  static constexpr std::size_t first_of(std::size_t segment) {
    return segment <= full_shift() ? (std::size_t{1} << segment) - 1
                                   : ((segment - full_shift() + 1) << full_shift()) - 1;
  }
  static std::pair<std::size_t, std::size_t> locate(std::size_t index) {
    const std::size_t level = static_cast<std::size_t>(std::bit_width(index + 1)) - 1;
    const std::size_t segment = level < full_shift() ? level : full_shift() + ((index + 1) >> full_shift()) - 1;
    return {segment, index - first_of(segment)};
  }

  std::vector<std::vector<T>> segments_;  // none is empty
};

}  // namespace castor::formats
