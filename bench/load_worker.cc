#include "bench/load_worker.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "bench/clock.h"

namespace ps::bench {
namespace {

// Entries beyond the window, so that the next push finds room while libzmq still holds the last.
constexpr std::uint32_t kSparePlaces = 4;
constexpr std::uint64_t kRecordHeaderBytes = 64;
constexpr auto kAskWhetherToGiveUp = std::chrono::milliseconds(50);

}  // namespace

LoadWorker::LoadWorker(net::Context& context, const Plan& plan, const control::MapT& map,
                       const Settings& settings)
    : context_(context), plan_(plan), map_(map), settings_(settings) {
  ready_future_ = ready_.get_future();
  stopped_future_ = stopped_.get_future();
  counted_future_ = counted_.get_future();
  acked_ = settings_.first_clock;
}

LoadWorker::~LoadWorker() { Close(); }

void LoadWorker::Close() {
  loop_.Stop();
  if (thread_.joinable()) thread_.join();
}

template <typename T>
Result<T> LoadWorker::WaitFor(std::future<Result<T>>& future, const char* what) {
  const std::string who = "worker " + std::to_string(settings_.number) + ": ";
  const std::uint64_t end = NowNs() + Nanoseconds(settings_.deadline_seconds);
  while (future.wait_for(kAskWhetherToGiveUp) != std::future_status::ready) {
    if (settings_.give_up) {
      if (const std::string why = settings_.give_up(); !why.empty()) {
        return Error{ErrorCode::kClosed, why};
      }
    }
    if (NowNs() < end) continue;
    return Error{ErrorCode::kTimeout, who + what + " took more than " +
                                          std::to_string(settings_.deadline_seconds) + " s"};
  }
  return future.get();
}

Status LoadWorker::Connect() {
  thread_ = std::thread([this] { RunThread(); });
  PS_TRY(WaitFor(ready_future_, "connecting and a first push"));
  return Ok();
}

void LoadWorker::SetMap(const control::MapT& map) {
  loop_.Post([this, copy = std::make_shared<control::MapT>(control::Clone(map))] {
    if (broken_ || !client_) return;
    if (const Status set = client_->SetMap(*copy); !set.ok()) Fail(set.error());
  });
}

void LoadWorker::BeginRound(std::uint64_t round) {
  loop_.Post([this, round] {
    if (!broken_ && client_) client_->BeginRound(round);
  });
}

void LoadWorker::AbortRound(std::uint64_t round) {
  loop_.Post([this, round] {
    if (!broken_ && client_) client_->AbortRound(round);
  });
}

void LoadWorker::Start() {
  loop_.Post([this] {
    running_ = true;
    if (Pulls(settings_.operation)) PullOne();
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
  return measured_;
}

Result<std::uint64_t> LoadWorker::CountApplied() {
  loop_.Post([this] {
    if (broken_) return;
    counting_ = true;
    worker::DataClient::Pull pull;
    pull.bases = bases_;
    StartPull(std::move(pull));
  });
  return WaitFor(counted_future_, "asking the shards what they have applied");
}

void LoadWorker::RunThread() {
  if (Status set_up = SetUp(); !set_up.ok()) {
    connected_ = true;
    ready_.set_value(set_up.error());
    return;
  }
  loop_.Run();
  client_.reset();
}

Status LoadWorker::SetUp() {
  const std::uint32_t shards = plan_.layout.shard_count();
  const std::size_t payload = plan_.max_push_bytes();
  const std::size_t record =
      (kRecordHeaderBytes + (payload + 7) / 8 * 8 + shards * sizeof(worker::RingPart) + 63) / 64 *
      64;
  // A whole number of records, and no less than the ring takes.
  const std::size_t places = std::max<std::size_t>(
      settings_.window + kSparePlaces, worker::RetentionRing::kHeaderBytes / record + 1);
  memory_ = std::make_shared<std::vector<Line>>(
      (worker::RetentionRing::kHeaderBytes + record * places) / sizeof(Line));
  written_.assign(memory_->size(), false);
  slots_.resize(places);
  bases_.resize(shards);
  // Workers do not ask for the same rows at the same time.
  turn_ = settings_.number * plan_.look_ups.size() / 7;
  const worker::RingIdentity identity{
      settings_.job, WorkerId(settings_.number), settings_.incarnation, settings_.generation,
      shards,        settings_.first_clock};
  ring_ = std::make_unique<worker::RetentionRing>(PS_TRY(worker::RetentionRing::Create(
      {reinterpret_cast<std::byte*>(memory_->data()), memory_->size() * sizeof(Line)}, identity,
      memory_)));
  worker::DataClient::Callbacks callbacks;
  callbacks.initial_values = [](ShardId, std::span<float> values) {
    std::fill(values.begin(), values.end(), 1.0f);
    return true;
  };
  callbacks.advanced = [this] { OnAdvanced(); };
  callbacks.pulled = [this](const worker::PullResult& result) { OnPulled(result); };
  callbacks.broken = [this](const Error& error) { Fail(error); };
  callbacks.round_cut = settings_.cut;
  callbacks.returned = [this](const worker::RingEntryInfo& push, ShardId shard,
                              std::span<const std::byte>) {
    Fail(Error{ErrorCode::kInternal, "shard " + std::to_string(shard.value()) +
                                         " refused the push of clock " +
                                         std::to_string(push.clock.value()) + " as too old"});
  };
  callbacks.non_finite = [this](const worker::RingEntryInfo& push, ShardId shard) {
    Fail(Error{ErrorCode::kInternal, "shard " + std::to_string(shard.value()) +
                                         " found the push of clock " +
                                         std::to_string(push.clock.value()) + " not finite"});
  };
  worker::DataClientOptions options;
  options.window = settings_.window;
  options.token = settings_.token;
  client_ = std::make_unique<worker::DataClient>(loop_, context_, *ring_, &plan_.layout, options,
                                                 std::move(callbacks));
  PS_TRY(client_->SetMap(map_));
  PushOne();
  client_->Committed();
  return Ok();
}

void LoadWorker::Fail(const Error& error) {
  if (broken_) return;
  broken_ = true;
  running_ = false;
  const Error named =
      Annotate(error, "worker " + std::to_string(settings_.number) + " cannot go on: ");
  if (!connected_) ready_.set_value(named);
  connected_ = true;
  if (!stopped_told_) stopped_.set_value(named);
  stopped_told_ = true;
  if (!counted_told_) counted_.set_value(named);
  counted_told_ = true;
}

bool LoadWorker::PushOne() {
  const std::uint64_t clock = ring_->last_clock().value() + 1;
  EncodedPush made;
  const bool fills = filling();
  if (fills) made = plan_.FillPush(filled_);
  const EncodedPush& push = fills ? made : plan_.pushes[(clock + turn_) % plan_.pushes.size()];
  worker::RetentionRing::Reservation place;
  if (ring_->Reserve(push.payload.size(), push.parts.size(), place) !=
      worker::RetentionRing::ReserveStatus::kReserved) {
    return false;
  }
  if (fills) filled_ += plan_.filled_at_once;
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
  if (IsOfRows(settings_.operation)) {
    pull.rows = plan_.look_ups[turn_ % plan_.look_ups.size()];
    ++turn_;
  }
  StartPull(std::move(pull));
}

void LoadWorker::StartPull(worker::DataClient::Pull pull) {
  pulling_ = true;
  pull_started_ns_ = NowNs();
  client_->StartPull(pull);
}

void LoadWorker::FillTable() {
  if (broken_ || !filling()) return;
  bool any = false;
  while (filling() && ring_->last_clock().value() - acked_.value() < settings_.window &&
         PushOne()) {
    any = true;
  }
  if (any) {
    client_->Committed();
  } else if (ring_->last_clock() == acked_) {
    // The ring is full of what libzmq still holds, and nothing is on its way to wake us.
    loop_.Post([this] { FillTable(); });
  }
}

void LoadWorker::Fill() {
  if (!running_ || !Pushes(settings_.operation)) return;
  const bool with_pulls = Pulls(settings_.operation);
  bool any = false;
  // The head is the client's after Committed(): until then we count what is new ourselves.
  while (ring_->last_clock().value() - acked_.value() < settings_.window) {
    if (with_pulls && steps_allowed_ == 0) break;
    if (!PushOne()) break;
    if (steps_allowed_ > 0) --steps_allowed_;
    any = true;
  }
  if (any) {
    client_->Committed();
  } else if (ring_->last_clock() == acked_ && !with_pulls) {
    // The ring is full of what libzmq still holds, and nothing is on its way to wake us.
    loop_.Post([this] { Fill(); });
  }
}

void LoadWorker::Finish(std::uint64_t started_ns) {
  const Phase phase = phase_;
  if (phase == Phase::kNone) return;
  Part& part = measured_.parts[static_cast<std::size_t>(phase)];
  ++part.operations;
  part.latency.Add(NowNs() - started_ns);
  ++finished_;
}

void LoadWorker::OnAdvanced() {
  const Clock acked = client_->stream().AckedByAll();
  if (acked <= acked_) return;
  while (acked_ < acked) {
    acked_ = Clock(acked_.value() + 1);
    ++measured_.pushes;
    if (!Pulls(settings_.operation) && connected_) {
      Finish(slots_[acked_.value() % slots_.size()].started_ns);
    }
  }
  client_->Release(acked_);
  if (broken_) return;
  if (!connected_) {
    FillTable();
    if (filling() || acked_ < ring_->last_clock()) return;
    connected_ = true;
    ready_.set_value(Nothing());
    return;
  }
  if (settings_.pause_ms == 0) {
    Fill();
  } else if (running_) {
    pause_.After(net::Milliseconds(settings_.pause_ms), [this] { Fill(); });
  }
  FinishIfIdle();
}

void LoadWorker::OnPulled(const worker::PullResult& result) {
  for (const worker::PulledShard& shard : result.shards) {
    bases_[shard.shard.value()] = worker::DataClient::Base{shard.version, shard.lineage};
  }
  pulling_ = false;
  if (counting_) {
    counting_ = false;
    std::uint64_t applied = 0;
    for (const worker::DataClient::Base& base : bases_) applied += base.version;
    if (!counted_told_) counted_.set_value(applied);
    counted_told_ = true;
    return;
  }
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
  stopped_told_ = true;
  stopped_.set_value(Nothing());
}

}  // namespace ps::bench
