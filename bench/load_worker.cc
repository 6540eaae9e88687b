#include "bench/load_worker.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "bench/clock.h"
#include "bench/local_servers.h"

namespace ps::bench {
namespace {

// Entries beyond the window, so that the next push finds room while libzmq still holds the last.
constexpr std::uint32_t kSparePlaces = 4;
constexpr std::uint64_t kRecordHeaderBytes = 64;

}  // namespace

LoadWorker::LoadWorker(zmq::context_t& context, const Plan& plan, const control::MapT& map,
                       const Settings& settings)
    : context_(context), plan_(plan), map_(map), settings_(settings) {
  ready_future_ = ready_.get_future();
  stopped_future_ = stopped_.get_future();
}

LoadWorker::~LoadWorker() {
  loop_.Stop();
  if (thread_.joinable()) thread_.join();
}

Status LoadWorker::WaitFor(std::future<Status>& future, const char* what) {
  if (future.wait_for(std::chrono::duration<double>(settings_.deadline_seconds)) ==
      std::future_status::ready) {
    return future.get();
  }
  return Error{ErrorCode::kTimeout, "worker " + std::to_string(settings_.number) + ": " + what +
                                        " took more than " +
                                        std::to_string(settings_.deadline_seconds) + " s"};
}

Status LoadWorker::Connect() {
  thread_ = std::thread([this] { RunThread(); });
  return WaitFor(ready_future_, "connecting and a first push");
}

void LoadWorker::Start() {
  loop_.Post([this] {
    running_ = true;
    if (settings_.operation != Operation::kPush) PullOne();
    Fill();
  });
}

Result<LoadWorker::Measured> LoadWorker::Stop() {
  loop_.Post([this] {
    running_ = false;
    stopping_ = true;
    FinishIfIdle();
  });
  PS_TRY(WaitFor(stopped_future_, "the answers to what it had sent"));
  loop_.Stop();
  thread_.join();
  return measured_;
}

void LoadWorker::RunThread() {
  if (Status set_up = SetUp(); !set_up.ok()) {
    ready_.set_value(set_up.error());
    return;
  }
  loop_.Run();
  client_.reset();
}

Status LoadWorker::SetUp() {
  const std::uint32_t shards = plan_.layout.shard_count();
  std::size_t payload = 0;
  for (const EncodedPush& push : plan_.pushes) payload = std::max(payload, push.payload.size());
  const std::size_t record =
      (kRecordHeaderBytes + (payload + 7) / 8 * 8 + shards * sizeof(worker::RingPart) + 63) / 64 *
      64;
  // A whole number of records, and no less than the ring takes.
  const std::size_t places = std::max<std::size_t>(
      settings_.window + kSparePlaces, worker::RetentionRing::kHeaderBytes / record + 1);
  memory_.resize((worker::RetentionRing::kHeaderBytes + record * places) / sizeof(Line));
  written_.assign(memory_.size(), false);
  slots_.resize(places);
  bases_.resize(shards);
  const worker::RingIdentity identity{JobId(kJobNumber),
                                      WorkerId(settings_.number),
                                      Incarnation(LocalServers::IncarnationOf(settings_.number)),
                                      1,
                                      shards,
                                      Clock()};
  ring_ = std::make_unique<worker::RetentionRing>(PS_TRY(worker::RetentionRing::Create(
      {reinterpret_cast<std::byte*>(memory_.data()), memory_.size() * sizeof(Line)}, identity)));
  worker::DataClient::Callbacks callbacks;
  callbacks.initial_values = [](ShardId, std::span<float> values) {
    std::fill(values.begin(), values.end(), 1.0f);
    return true;
  };
  callbacks.advanced = [this] { OnAdvanced(); };
  callbacks.pulled = [this](const worker::PullResult& result) { OnPulled(result); };
  callbacks.broken = [this](const Error& error) {
    if (broken_) return;
    broken_ = true;
    if (!connected_) ready_.set_value(error);
    connected_ = true;
    stopping_ = true;
    running_ = false;
    stopped_.set_value(error);
  };
  worker::DataClientOptions options;
  options.window = settings_.window;
  client_ = std::make_unique<worker::DataClient>(loop_, context_, *ring_, &plan_.layout, options,
                                                 std::move(callbacks));
  PS_TRY(client_->SetMap(map_));
  PushOne();
  client_->Committed();
  return Ok();
}

bool LoadWorker::PushOne() {
  const std::uint64_t clock = ring_->last_clock().value() + 1;
  const EncodedPush& push = plan_.pushes[clock % plan_.pushes.size()];
  worker::RetentionRing::Reservation place;
  if (ring_->Reserve(push.payload.size(), push.parts.size(), place) !=
      worker::RetentionRing::ReserveStatus::kReserved) {
    return false;
  }
  // Sparse pushes differ in size and lie elsewhere in each round of the ring.
  const std::size_t line = place.region_begin / sizeof(Line);
  if (!plan_.dense || !written_[line]) {
    std::memcpy(place.payload.data(), push.payload.data(), push.payload.size());
    written_[line] = true;
  }
  worker::RingEntryInfo info;
  info.clock = Clock(clock);
  info.samples = 1;
  ring_->Commit(info, push.payload.size(), push.parts);
  slots_[clock % slots_.size()].started_ns = NowNs();
  return true;
}

void LoadWorker::PullOne() {
  worker::DataClient::Pull pull;
  pull.fp32 = plan_.values == wire::ValueCodec::Fp32;
  pull.snapshot = plan_.dense || settings_.operation == Operation::kPull;
  pull.bases = bases_;
  pulling_ = true;
  pull_started_ns_ = NowNs();
  client_->StartPull(pull);
}

void LoadWorker::Fill() {
  if (!running_ || settings_.operation == Operation::kPull) return;
  bool any = false;
  // The head is the client's after Committed(): until then we count what is new ourselves.
  while (ring_->last_clock().value() - acked_.value() < settings_.window) {
    if (settings_.operation == Operation::kPushPull && steps_allowed_ == 0) break;
    if (!PushOne()) break;
    if (steps_allowed_ > 0) --steps_allowed_;
    any = true;
  }
  if (any) {
    client_->Committed();
  } else if (ring_->last_clock() == acked_ && settings_.operation == Operation::kPush) {
    // The ring is full of what libzmq still holds, and nothing is on its way to wake us.
    loop_.Post([this] { Fill(); });
  }
}

void LoadWorker::Finish(std::uint64_t started_ns) {
  if (!measuring_) return;
  ++measured_.operations;
  measured_.latency.Add(NowNs() - started_ns);
}

void LoadWorker::OnAdvanced() {
  const Clock acked = client_->stream().AckedByAll();
  if (acked <= acked_) return;
  while (acked_ < acked) {
    acked_ = Clock(acked_.value() + 1);
    ++measured_.pushes;
    if (settings_.operation == Operation::kPush && connected_) {
      Finish(slots_[acked_.value() % slots_.size()].started_ns);
    }
  }
  client_->Release(acked_);
  if (!connected_) {
    connected_ = true;
    ready_.set_value(Ok());
    return;
  }
  Fill();
  FinishIfIdle();
}

void LoadWorker::OnPulled(const worker::PullResult& result) {
  for (const worker::PulledShard& shard : result.shards) {
    bases_[shard.shard.value()] = worker::DataClient::Base{shard.version, shard.lineage};
  }
  pulling_ = false;
  Finish(pull_started_ns_);
  if (running_) {
    // As a task does: the pull for the next step is asked for before this step's push.
    PullOne();
    steps_allowed_ = 1;
    Fill();
  }
  FinishIfIdle();
}

void LoadWorker::FinishIfIdle() {
  if (broken_ || !stopping_ || pulling_ || acked_ < ring_->last_clock()) return;
  stopping_ = false;
  stopped_.set_value(Ok());
}

}  // namespace ps::bench
