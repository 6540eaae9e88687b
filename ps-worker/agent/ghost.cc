#include "ps-worker/agent/ghost.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "ps-worker/task/ring_file.h"

namespace ps::worker {

Result<std::unique_ptr<Ghost>> Ghost::Start(net::Loop& loop, net::Context& context,
                                            const RingStore& store, const RingKey& key,
                                            std::uint64_t token, DoneFn done) {
  const std::shared_ptr<RingFile> file = PS_TRY(RingFile::Open(store.PathOf(key).string()));
  RetentionRing ring = PS_TRY(RetentionRing::Open(file->region(), file));
  const RingIdentity& identity = ring.identity();
  if (RingKey{identity.job, identity.worker, identity.incarnation} != key) {
    return Error{ErrorCode::kInvalid, file->path() + ": holds the pushes of another task"};
  }
  return std::make_unique<Ghost>(Private(), loop, context, std::move(ring), key, token,
                                 std::move(done));
}

Ghost::Ghost(Private, net::Loop& loop, net::Context& context, RetentionRing ring,
             const RingKey& key, std::uint64_t token, DoneFn done)
    : key_(key), done_(std::move(done)), ring_(std::move(ring)) {
  DataClientOptions options;
  options.ghost = true;
  options.token = token;
  DataClient::Callbacks callbacks;
  callbacks.advanced = [this] { Check(); };
  callbacks.broken = [this](const Error& error) { OnBroken(error); };
  client_ =
      std::make_unique<DataClient>(loop, context, ring_, nullptr, options, std::move(callbacks));
}

Status Ghost::SetMap(const control::MapT& map) {
  PS_TRY(client_->SetMap(map));
  reported_.reset();
  Check();
  return Ok();
}

void Ghost::Check() {
  if (client_ == nullptr) return;
  if (client_->all_acked()) {
    Report(ring_.last_clock());
  } else if (broken_.has_value()) {
    // It can never be complete. The job goes on without, and the operator is told how far it got.
    Report(client_->stream().AckedByAll());
  }
}

void Ghost::Report(Clock clock) {
  const std::uint64_t version = client_->stream().map_version();
  if (version == 0 || reported_ == version) return;
  reported_ = version;
  control::ReplayDoneT done;
  done.job = key_.job.value();
  done.worker = key_.worker.value();
  done.incarnation = key_.incarnation.value();
  done.last_clock = clock.value();
  done.map_version = version;
  done_(done);
}

void Ghost::OnBroken(const Error& error) {
  spdlog::error(
      "job {}, worker {}: the pushes that incarnation {} left behind cannot be replayed: {}",
      key_.job.value(), key_.worker.value(), key_.incarnation.value(), ErrorLine(error));
  broken_ = error;
  Check();
}

}  // namespace ps::worker
