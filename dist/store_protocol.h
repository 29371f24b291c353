// What the store and its clients say to each other, one frame each: a kind, then the fields named here.
#pragma once

#include <chrono>
#include <cstdint>

#include "dist/failure.h"
#include "dist/wire.h"

namespace castor::dist {

/// The first byte of a frame.
enum class StoreMessage : std::uint8_t {
  // Asked by clients and answered in order.
  kSet,   ///< key, value -> kDone
  kWait,  ///< key, u32 milliseconds -> kValue value, or kNone after that time
  kAdd,   ///< key, i64 -> kNumber i64: the sum so far
  kDone,
  kValue,
  kNone,
  kNumber,
  // The watch: from ranks ...
  kEnlist,  ///< i32 rank: this connection stands for the rank's life
  kBeat,    ///< text: what the rank is doing; the store sends empty ones back
  kReport,  ///< a failure that the rank found
  kLeave,   ///< the rank ends well
  // ... and to all of them.
  kFailed,  ///< the failure that counts
  kLeft,    ///< i32 rank
};

/// How often ranks and store tell each other that they live, and after what silence they are given up.
inline constexpr std::chrono::milliseconds kBeatTime{400};
inline constexpr std::chrono::milliseconds kSilence{3000};

inline FrameWriter begin_frame(StoreMessage kind) {
  FrameWriter frame;
  frame.add(static_cast<std::uint8_t>(kind));
  return frame;
}

inline std::string frame_of_failure(StoreMessage kind, const Failure& failure) {
  FrameWriter frame = begin_frame(kind);
  frame.add(static_cast<std::int32_t>(failure.rank)).add(failure.sequence);
  frame.add(static_cast<std::uint8_t>(failure.late)).add(failure.op).add(failure.text);
  return frame.finish();
}

inline Failure read_failure(FrameReader& frame) {
  Failure failure;
  failure.rank = frame.number<std::int32_t>();
  failure.sequence = frame.number<std::uint64_t>();
  failure.late = frame.number<std::uint8_t>() != 0;
  failure.op = frame.text();
  failure.text = frame.text();
  return failure;
}

}  // namespace castor::dist
