// One persistent pool of threads for all kernels.
//
// The caller works too. Pieces of a job are taken one by one, so a thread that the system has put aside holds back one piece
// and not its whole share. Waiting threads spin for a moment, since the next job is microseconds away while a model runs, and
// then sleep: on a busy machine spinning would take the time of the thread that is waited for.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace openglm {

class Pool {
   public:
    explicit Pool(int num_threads);
    ~Pool();
    Pool(const Pool&) = delete;

    int size() const { return (int)workers_.size() + 1; }
    // Calls work(piece) for 0 <= piece < pieces, in any order, and returns when all are done. One job at a time.
    void run(int64_t pieces, const std::function<void(int64_t)>& work);

   private:
    void serve();
    void take(uint64_t generation);

    // Upper half: number of the job; lower half: the next piece. A thread that comes late finds another number.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<uint32_t> pieces_{0};
    std::atomic<const std::function<void(int64_t)>*> work_{nullptr};
    std::atomic<uint32_t> done_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false};
    std::mutex sleep_, one_job_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

// The pool of this process, made at first use; a forked child gets its own. It lives as long as somebody uses it.
std::shared_ptr<Pool> pool();
void set_num_threads(int num_threads);

}  // namespace openglm
