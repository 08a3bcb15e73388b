//! A small pool of persistent threads for parallel regions that last microseconds.
//!
//! Decoding one token runs some hundreds of regions, so a region costs no allocation and, while workers still spin
//! from the last one, no system call. Work is handed out by task number: which thread takes a task never changes what
//! the task computes.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker looks for the next region before it goes to sleep.
const SPIN: Duration = Duration::from_micros(60);

/// A pool of `threads() - 1` workers; the caller of [`Pool::run`] is the remaining thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
    /// Held for the length of a region; who finds it taken (a nested or concurrent call) runs alone.
    busy: Mutex<()>,
}

impl Pool {
    /// A pool that computes with `threads` threads (0 counts as 1), the caller among them.
    ///
    /// When the system refuses to start a thread, the pool has fewer.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared::new(threads.max(1) - 1));
        let workers: Vec<JoinHandle<()>> = (0..threads.max(1) - 1)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("quince-{}", index + 1));
                builder.spawn(move || work(&shared, index)).ok()
            })
            .collect();
        let sleepers = workers.iter().map(|worker| worker.thread().clone()).collect();
        Pool { shared, workers, sleepers, busy: Mutex::new(()) }
    }

    /// The number of threads that compute, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < tasks`, on all threads, and returns when all calls have.
    ///
    /// Tasks are taken in order of their number. A call from inside a task, or while another thread's region runs,
    /// does all tasks on the calling thread.
    ///
    /// # Panics
    /// When a task panics.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks < 2 || self.workers.is_empty() {
            return (0..tasks).for_each(task);
        }
        match self.busy.try_lock() {
            Err(TryLockError::WouldBlock) => (0..tasks).for_each(task),
            Ok(_busy) => self.run_parallel(tasks, &task),
            // A task panicked once; its region has been closed, so that the lock may be taken over.
            Err(TryLockError::Poisoned(poisoned)) => {
                let _busy = poisoned.into_inner();
                self.run_parallel(tasks, &task);
            }
        }
    }

    fn run_parallel(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. `Close` ends the region before `task` goes out of scope, also when
        // `task` panics here, and a worker touches the job only between joining and leaving an open region.
        let task_static: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        // SAFETY: the region is closed and nobody is in it, so nobody reads the job.
        unsafe { *shared.job.get() = Some(Job { task: task_static, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let region = Close(shared);
        let epoch = shared.state.load(Ordering::Relaxed) & EPOCH;
        shared.state.store(epoch.wrapping_add(EPOCH_STEP) | OPEN, Ordering::SeqCst);
        for (asleep, thread) in shared.asleep.iter().zip(&self.sleepers) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.take_tasks(task, tasks);
        drop(region);
        if shared.panicked.load(Ordering::Relaxed) {
            panic!("a task of the thread pool panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of tasks, so that joining cannot fail.
            let _ = worker.join();
        }
    }
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// Low bits of [`Shared::state`]: how many workers are inside the region.
const ACTIVE: u64 = 0xffff;
/// The bit that lets workers join.
const OPEN: u64 = 0x1_0000;
const EPOCH_STEP: u64 = 0x2_0000;
const EPOCH: u64 = !(EPOCH_STEP - 1);

struct Shared {
    /// Number of the region, whether it may be joined, and how many workers are in it: one word, so that joining is
    /// one compare-and-swap.
    state: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    asleep: Vec<AtomicBool>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while the region is closed and empty, and read only by workers that have joined an
// open one; the state word orders both.
unsafe impl Sync for Shared {}
// SAFETY: the job is a shared reference to a `Sync` closure.
unsafe impl Send for Shared {}

impl Shared {
    fn new(workers: usize) -> Shared {
        Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn take_tasks(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }
}

/// Ends a region when dropped: no worker may join any more, and those inside are waited for.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // Ends the hand-out early when the caller's task panicked; otherwise it has ended already.
        self.0.next.fetch_max(usize::MAX / 2, Ordering::Relaxed);
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0u32;
        while self.0.state.load(Ordering::Acquire) & ACTIVE != 0 {
            turns += 1;
            if turns.is_multiple_of(4096) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    while let Some(epoch) = wait_for_region(shared, index, seen) {
        seen = epoch;
        let joined = shared.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
            (state & EPOCH == epoch && state & OPEN != 0).then_some(state + 1)
        });
        if joined.is_err() {
            continue;
        }
        // SAFETY: this worker is counted in the open region, so the job is set and not written.
        if let Some(job) = unsafe { *shared.job.get() } {
            let result = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(job.task, job.tasks)));
            if result.is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// The number of the next region after `seen`; spins, then sleeps. `None` when the pool goes away.
fn wait_for_region(shared: &Shared, index: usize, seen: u64) -> Option<u64> {
    let fresh = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state & EPOCH != seen && state & OPEN != 0).then_some(state & EPOCH)
    };
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if let Some(epoch) = fresh() {
                return Some(epoch);
            }
            std::hint::spin_loop();
        }
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        if start.elapsed() < SPIN {
            continue;
        }
        // The flag is set before the last look, and the caller opens a region before it reads the flag: one of the
        // two sees the other.
        shared.asleep[index].store(true, Ordering::SeqCst);
        while fresh().is_none() && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.asleep[index].store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn many_short_regions_with_sleeps_between() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.run(3, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(sum.load(Ordering::Relaxed), 2000 * 3);
    }

    #[test]
    fn nested_and_concurrent_calls_complete() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(4, |_| {
                            pool.run(3, |_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 2 * 100 * 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, |i| assert!(i != 5, "five"))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }
}
