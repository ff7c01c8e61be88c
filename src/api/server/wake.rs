//! Keeps a task that wakes itself from going through the scheduler.
//!
//! hyper hands the body of a request over through a channel between two parts of one task. The
//! reader of the channel wakes the writer, so the task wakes itself while it runs. The scheduler
//! would queue the task once more and wake an idle worker for the queue, which costs two system
//! calls and a context switch for nothing. [`CoalescedWakes`] wraps the task's future: a wake-up
//! during a poll makes the wrapper poll the future again, and does not reach the scheduler.
//!
//! ```text
//! Idle -poll-> Polling -pending-> Idle                a wake-up in Idle goes to the scheduler
//!              Polling -wake-> Woken -poll-> Polling  a wake-up in Polling leads to another poll
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Polls in a row before the task yields to other tasks.
const MAX_POLLS: usize = 4;

const IDLE: u8 = 0;
const POLLING: u8 = 1;
const WOKEN: u8 = 2;

/// A future whose wake-ups during a poll lead to another poll at once.
pub(super) struct CoalescedWakes<F> {
    future: F,
    shared: Arc<Shared>,
    /// Wakes through `shared`. The same for all polls, so that a future that keeps its waker need
    /// not replace it.
    waker: Waker,
}

struct Shared {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken = self
            .state
            .compare_exchange(POLLING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if woken == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl<F> CoalescedWakes<F> {
    pub(super) fn new(future: F) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU8::new(IDLE),
            task: AtomicWaker::new(),
        });
        Self {
            future,
            waker: Waker::from(Arc::clone(&shared)),
            shared,
        }
    }
}

impl<F: Future + Unpin> Future for CoalescedWakes<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // Must come before the state lets wake-ups go to the scheduler.
        this.shared.task.register(context.waker());
        for _ in 0..MAX_POLLS {
            this.shared.state.store(POLLING, Ordering::Release);
            let polled = Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker));
            let idle = this
                .shared
                .state
                .compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if polled.is_ready() || idle.is_ok() {
                return polled;
            }
        }
        this.shared.state.store(IDLE, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    /// What a poll does before it returns `Pending`.
    enum Step {
        Nothing,
        WakeItself,
        Finish,
    }

    struct Scripted {
        steps: VecDeque<Step>,
        last: Arc<Mutex<Option<Waker>>>,
        polls: Arc<AtomicUsize>,
    }

    impl Future for Scripted {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.polls.fetch_add(1, Ordering::Relaxed);
            *self.last.lock().unwrap() = Some(context.waker().clone());
            match self.steps.pop_front() {
                None | Some(Step::Nothing) => Poll::Pending,
                Some(Step::WakeItself) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(Step::Finish) => Poll::Ready(()),
            }
        }
    }

    #[derive(Default)]
    struct Scheduler(AtomicUsize);

    impl Wake for Scheduler {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls a future that takes these steps. Returns (whether it is ready, polls, wake-ups of the
    /// task, its waker).
    fn poll(steps: impl IntoIterator<Item = Step>) -> (bool, usize, Arc<Scheduler>, Waker) {
        let (last, polls, scheduler) = (Arc::default(), Arc::default(), Arc::new(Scheduler::default()));
        let mut future = CoalescedWakes::new(Scripted {
            steps: steps.into_iter().collect(),
            last: Arc::clone(&last),
            polls: Arc::clone(&polls),
        });
        let waker = Waker::from(Arc::clone(&scheduler));
        let ready = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_ready();
        let last = last.lock().unwrap().clone().unwrap();
        (ready, polls.load(Ordering::Relaxed), scheduler, last)
    }

    fn wakes(scheduler: &Scheduler) -> usize {
        scheduler.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_task_that_wakes_itself_bypasses_the_scheduler() {
        let (ready, polls, scheduler, _) = poll([Step::WakeItself, Step::Nothing, Step::Nothing]);
        assert_eq!((ready, polls, wakes(&scheduler)), (false, 2, 0));
        let (ready, polls, scheduler, _) = poll([Step::WakeItself, Step::Finish]);
        assert_eq!((ready, polls, wakes(&scheduler)), (true, 2, 0));
    }

    #[test]
    fn an_idle_task_is_woken_through_the_scheduler() {
        let (ready, polls, scheduler, waker) = poll([Step::Nothing]);
        assert_eq!((ready, polls, wakes(&scheduler)), (false, 1, 0));
        waker.wake();
        assert_eq!(wakes(&scheduler), 1);
    }

    #[test]
    fn a_task_that_keeps_waking_itself_yields_to_others() {
        let (ready, polls, scheduler, _) = poll(std::iter::repeat_with(|| Step::WakeItself).take(100));
        assert_eq!((ready, polls, wakes(&scheduler)), (false, MAX_POLLS, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_from_another_thread_is_lost() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(1);
        let sum = tokio::spawn(CoalescedWakes::new(Box::pin(async move {
            let mut sum = 0;
            while let Some(number) = receiver.recv().await {
                sum += number;
            }
            sum
        })));
        for number in 0..10_000 {
            sender.send(number).await.unwrap();
        }
        drop(sender);
        assert_eq!(sum.await.unwrap(), 49_995_000);
    }
}
