// The ring and its JSON. Delicate: `dump` runs while a job is failing, so nothing it does may throw.
#include "dist/flight_recorder.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/base/log.h"

namespace castor::dist {
namespace {

std::string_view state_name(FlightRecord::State state) {
  constexpr std::string_view kNames[] = {"queued", "running", "done", "failed"};
  return kNames[static_cast<std::size_t>(state)];
}

double microseconds_kept(double seconds) { return static_cast<double>(static_cast<std::int64_t>(seconds * 1e6)) / 1e6; }

}  // namespace

FlightRecorder::FlightRecorder(int rank, std::size_t capacity)
    : rank_(rank), capacity_(std::max<std::size_t>(capacity, 1)) {}

std::uint64_t FlightRecorder::add(std::string group, std::string text, std::uint64_t sequence) {
  FlightRecord record;
  record.group = std::move(group);
  record.text = std::move(text);
  record.sequence = sequence;
  record.queued_s = now();
  const std::lock_guard lock(mutex_);
  if (records_.size() < capacity_) {
    records_.push_back(std::move(record));
  } else {
    records_[next_ % capacity_] = std::move(record);
  }
  return next_++;
}

FlightRecord* FlightRecorder::find(std::uint64_t ticket) {
  return ticket < next_ && next_ - ticket <= records_.size() ? &records_[ticket % capacity_] : nullptr;
}

void FlightRecorder::started(std::uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (FlightRecord* record = find(ticket)) {
    record->state = FlightRecord::State::kRunning;
    record->started_s = now();
  }
}

void FlightRecorder::ended(std::uint64_t ticket, bool well) {
  const std::lock_guard lock(mutex_);
  if (FlightRecord* record = find(ticket)) {
    record->state = well ? FlightRecord::State::kDone : FlightRecord::State::kFailed;
    record->ended_s = now();
  }
}

std::string FlightRecorder::latest() const {
  const std::lock_guard lock(mutex_);
  if (next_ == 0) return {};
  const FlightRecord& record = records_[(next_ - 1) % capacity_];
  const bool over = record.state == FlightRecord::State::kDone || record.state == FlightRecord::State::kFailed;
  return cat(over ? "after " : "in ", record.text, " (#", record.sequence, " of group ", record.group, "), ",
             over ? "ended " : "queued ", static_cast<std::int64_t>(now() - (over ? record.ended_s : record.queued_s)),
             " s ago");
}

Json FlightRecorder::to_json(const Failure* failure) const {
  const std::lock_guard lock(mutex_);
  Json result = Json::object();
  result["rank"] = rank_;
  result["failure"] = nullptr;
  if (failure != nullptr) {
    result["failure"] = {{"rank", failure->rank},
                         {"op", failure->op},
                         {"sequence", failure->sequence},
                         {"late", failure->late},
                         {"text", failure->text}};
  }
  Json& list = result["collectives"] = Json::array();
  for (std::uint64_t ticket = next_ - records_.size(); ticket < next_; ++ticket) {
    const FlightRecord& record = records_[ticket % capacity_];
    list.push_back({{"group", record.group},
                    {"sequence", record.sequence},
                    {"collective", record.text},
                    {"state", state_name(record.state)},
                    {"queued_s", microseconds_kept(record.queued_s)},
                    {"started_s", microseconds_kept(record.started_s)},
                    {"ended_s", microseconds_kept(record.ended_s)}});
  }
  return result;
}

void FlightRecorder::set_folder(std::string folder, FileSystem& files) {
  const std::lock_guard lock(mutex_);
  folder_ = std::move(folder);
  files_ = &files;
}

void FlightRecorder::dump(const Failure& failure) noexcept {
  try {
    std::string path;
    FileSystem* files = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (dumped_ || folder_.empty()) return;
      dumped_ = true;
      files = files_;
      path = join_path(folder_, cat("flight_rank_", rank_, ".json"));
    }
    make_directories(directory_of(path), *files);
    write_file_atomically(path, dump_json(to_json(&failure), 1) + "\n", *files);
    logger().error("rank ", rank_, ": the last collectives are in ", path);
  } catch (const std::exception& error) {
    logger().error("rank ", rank_, ": cannot write the last collectives: ", error.what());
  }
}

}  // namespace castor::dist
