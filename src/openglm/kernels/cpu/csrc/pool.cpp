#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace openglm {
namespace {

constexpr uint32_t kClosed = 0xffffffff;  // a piece number that no job has
constexpr auto kSpin = std::chrono::microseconds(200);

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins until `ready`, for a moment at most; whether it came to be.
template <class Ready>
bool spin(Ready ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; i++) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

}  // namespace

Pool::Pool(int num_threads) {
    for (int i = 1; i < num_threads; i++) workers_.emplace_back([this] { serve(); });
}

Pool::~Pool() {
    stop_ = true;
    {
        std::lock_guard<std::mutex> lock(sleep_);
        wake_.notify_all();
    }
    for (auto& worker : workers_) worker.join();
}

void Pool::run(int64_t pieces, const std::function<void(int64_t)>& work) {
    if (pieces <= 0) return;
    if (workers_.empty() || pieces == 1) {
        for (int64_t i = 0; i < pieces; i++) work(i);
        return;
    }
    std::lock_guard<std::mutex> job(one_job_);
    const uint64_t generation = (ticket_.load() >> 32) + 1;
    ticket_.store(generation << 32 | kClosed);  // nobody takes a piece while the job is described
    work_.store(&work);
    pieces_.store((uint32_t)pieces);
    done_.store(0);
    ticket_.store(generation << 32);
    if (sleeping_.load() > 0) {
        std::lock_guard<std::mutex> lock(sleep_);
        wake_.notify_all();
    }
    take(generation);
    const auto all_done = [&] { return done_.load() == (uint32_t)pieces; };
    while (!spin(all_done)) sched_yield();  // another thread has the last piece and may need this core
}

void Pool::take(uint64_t generation) {
    uint64_t ticket = ticket_.load();
    while (ticket >> 32 == generation) {
        const uint32_t piece = (uint32_t)ticket;
        if (piece >= pieces_.load()) return;
        const auto* work = work_.load();
        // Success means that the job is still this one, and so were `pieces` and `work`.
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
        (*work)(piece);
        done_.fetch_add(1);
        ticket = ticket_.load();
    }
}

void Pool::serve() {
    uint64_t seen = 0;
    while (!stop_) {
        const auto news = [&] {
            const uint64_t ticket = ticket_.load();
            return stop_ || (ticket >> 32 != seen && (uint32_t)ticket != kClosed);
        };
        if (!spin(news)) {
            std::unique_lock<std::mutex> lock(sleep_);
            sleeping_++;
            wake_.wait(lock, news);
            sleeping_--;
        }
        const uint64_t ticket = ticket_.load();
        if ((uint32_t)ticket == kClosed) continue;
        seen = ticket >> 32;
        take(seen);
    }
}

namespace {

std::mutex guard;
std::shared_ptr<Pool> current;
int wanted = 0;

// Threads do not survive a fork: the child leaves the pool of its parent alone, and makes another when it needs one.
void before() { guard.lock(); }
void in_parent() { guard.unlock(); }
void in_child() {
    new std::shared_ptr<Pool>(std::move(current));  // never freed: its threads cannot be joined
    current = nullptr;
    guard.unlock();
}

}  // namespace

std::shared_ptr<Pool> pool() {
    std::lock_guard<std::mutex> lock(guard);
    if (!current) {
        static const int registered = pthread_atfork(before, in_parent, in_child);
        (void)registered;
        current = std::make_shared<Pool>(wanted > 0 ? wanted : (int)std::thread::hardware_concurrency());
    }
    return current;
}

void set_num_threads(int num_threads) {
    std::shared_ptr<Pool> old;  // ends, once the jobs that use it have, outside the lock
    std::lock_guard<std::mutex> lock(guard);
    wanted = num_threads;
    if (current && current->size() != num_threads) old.swap(current);
}

}  // namespace openglm
