#include "ps-worker/engine/replicated_model.h"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "common/check.h"

namespace ps::worker {

// The caller is rank 0, each other rank has a thread of its own: libraries of a device keep things
// by thread, which threads that come and go would make again in each step.
class ReplicatedModel::Threads {
 public:
  explicit Threads(std::size_t ranks) {
    for (std::size_t rank = 1; rank < ranks; ++rank) {
      threads_.emplace_back([this, rank] { Work(rank); });
    }
  }
  ~Threads() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    begin_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // Calls it for each rank and returns when all have returned. It throws nothing.
  void Run(const std::function<void(std::size_t rank)>& work) {
    {
      const std::lock_guard lock(mutex_);
      work_ = &work;
      working_ = threads_.size();
      ++round_;
    }
    begin_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    end_.wait(lock, [this] { return working_ == 0; });
    work_ = nullptr;
  }

 private:
  void Work(std::size_t rank) {
    std::uint64_t done = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      begin_.wait(lock, [&] { return ending_ || round_ != done; });
      if (ending_) return;
      done = round_;
      const auto* const work = work_;
      lock.unlock();
      (*work)(rank);
      lock.lock();
      if (--working_ == 0) end_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begin_;
  std::condition_variable end_;
  const std::function<void(std::size_t)>* work_ = nullptr;  // guarded, as all that follows
  std::uint64_t round_ = 0;
  std::size_t working_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

namespace {

// The memory of a replica of ours.
std::span<float> Mutable(std::span<const float> values) {
  return {const_cast<float*>(values.data()), values.size()};
}

// Of `batch`, what replica `rank` of `ranks` computes: nothing where that would be a single record,
// which batch norm has no statistics of.
Batch PartOf(const Batch& batch, std::size_t rank, std::size_t ranks) {
  const std::size_t parts = std::clamp<std::size_t>(batch.records / 2, 1, ranks);
  const auto bound = [&](std::size_t at) {
    return static_cast<std::uint32_t>(std::uint64_t{batch.records} * std::min(at, parts) / parts);
  };
  return batch.Part(bound(rank), bound(rank + 1) - bound(rank));
}

}  // namespace

ReplicatedModel::ReplicatedModel(std::vector<std::unique_ptr<Model>> replicas,
                                 std::unique_ptr<Collective> collective)
    : replicas_(std::move(replicas)), collective_(std::move(collective)) {
  PS_CHECK(replicas_.size() > 1, replicas_.size());
  for (const auto& replica : replicas_) {
    PS_CHECK(replica->layout().fingerprint == first().layout().fingerprint,
             "the replicas are of different models");
  }
  layout_ = first().layout();
  selected_elements_ = first().selected_elements();
  buffer_elements_ = first().buffer_elements();
  counter_elements_ = first().counter_elements();
  gradients_ = Mutable(first().gradients());
  threads_ = std::make_unique<Threads>(replicas_.size());
}

ReplicatedModel::~ReplicatedModel() = default;

std::span<const float> ReplicatedModel::row_gradients(std::uint32_t table) const {
  if (table >= row_gradients_.size()) return {};
  return row_gradients_[table];
}

void ReplicatedModel::WriteBuffers(std::span<const float> buffers,
                                   std::span<const float> counters) {
  for (const auto& replica : replicas_) replica->WriteBuffers(buffers, counters);
}

Result<double> ReplicatedModel::Step(const Batch& batch, const StepMode& mode) {
  PS_CHECK(batch.records > 0, batch.records);
  const std::size_t ranks = replicas_.size();
  std::vector<std::span<float>> parameters;
  for (const auto& replica : replicas_) parameters.push_back(replica->parameters());
  PS_TRY(collective_->Broadcast(parameters));

  std::vector<double> shares(ranks);
  std::vector<Result<double>> losses(ranks, 0.0);
  threads_->Run([&](std::size_t rank) {
    const Batch part = PartOf(batch, rank, ranks);
    shares[rank] = static_cast<double>(part.records) / batch.records;
    StepMode weighed = mode;
    weighed.weight *= shares[rank];
    if (rank > 0) weighed.meanwhile = nullptr;
    losses[rank] = replicas_[rank]->Step(part, weighed);
  });
  double mean = 0;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    mean += shares[rank] * PS_TRY(std::move(losses[rank]));
  }

  std::vector<std::span<const float>> gradients;
  for (const auto& replica : replicas_) {
    gradients.push_back(std::as_const(*replica).gradients());
  }
  PS_TRY(collective_->Sum(gradients, gradients_));
  SumRowGradients(batch.rows == nullptr ? 0 : batch.rows->tables.size());
  return mean;
}

void ReplicatedModel::SumRowGradients(std::size_t tables) {
  row_gradients_.resize(tables);
  for (std::uint32_t table = 0; table < tables; ++table) {
    const auto of_first = first().row_gradients(table);
    std::vector<float>& sum = row_gradients_[table];
    sum.assign(of_first.begin(), of_first.end());
    for (std::size_t rank = 1; rank < replicas_.size(); ++rank) {
      const auto other = replicas_[rank]->row_gradients(table);
      PS_CHECK(other.size() == sum.size(), other.size(), sum.size());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    }
  }
}

}  // namespace ps::worker
