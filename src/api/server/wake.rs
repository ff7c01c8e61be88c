//! Wake-ups of a task by itself, which cost nothing here.
//!
//! hyper hands the body of a request over through a channel between two parts of one task. Whoever takes the body out wakes
//! whoever put it in: the task wakes itself while it runs. The scheduler queues it once more, and wakes an idle worker to look
//! after the queue, which costs two system calls and a switch for nothing. [`OwnWakes`] stands between the two: a wake-up that
//! comes while the future is polled has it polled once more, and the scheduler does not hear of it.
//!
//! ```text
//! Asleep -poll-> Awake -pending-> Asleep              a wake-up now goes to the scheduler
//!                Awake -wake-> Woken -poll-> Awake    a wake-up now is for this loop
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Polls in a row before others have their turn.
const TURNS: usize = 4;

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const WOKEN: u8 = 2;

/// A future whose wake-ups while it is polled stay with it.
pub(super) struct OwnWakes<F> {
    future: F,
    bell: Arc<Bell>,
    /// Rings the bell. The same for all polls, so that nobody who keeps a waker has to replace it.
    ringing: Waker,
}

struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken = self
            .state
            .compare_exchange(AWAKE, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if woken == Err(ASLEEP) {
            self.task.wake();
        }
    }
}

impl<F> OwnWakes<F> {
    pub(super) fn new(future: F) -> Self {
        let bell = Arc::new(Bell {
            state: AtomicU8::new(ASLEEP),
            task: AtomicWaker::new(),
        });
        Self {
            future,
            ringing: Waker::from(Arc::clone(&bell)),
            bell,
        }
    }
}

impl<F: Future + Unpin> Future for OwnWakes<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // Before the state says that the scheduler is to be told.
        this.bell.task.register(context.waker());
        for _ in 0..TURNS {
            this.bell.state.store(AWAKE, Ordering::Release);
            let polled = Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.ringing));
            let slept = this
                .bell
                .state
                .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
            if polled.is_ready() || slept.is_ok() {
                return polled;
            }
        }
        this.bell.state.store(ASLEEP, Ordering::Release);
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

    /// Polls a future that takes these steps. Returns (whether it is ready, polls, wake-ups of the task, its waker).
    fn poll(steps: impl IntoIterator<Item = Step>) -> (bool, usize, Arc<Scheduler>, Waker) {
        let (last, polls, scheduler) = (Arc::default(), Arc::default(), Arc::new(Scheduler::default()));
        let mut future = OwnWakes::new(Scripted {
            steps: steps.into_iter().collect(),
            last: Arc::clone(&last),
            polls: Arc::clone(&polls),
        });
        let waker = Waker::from(Arc::clone(&scheduler));
        let ready = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_ready();
        let last = last.lock().unwrap().clone().unwrap();
        (ready, polls.load(Ordering::Relaxed), scheduler, last)
    }

    fn told(scheduler: &Scheduler) -> usize {
        scheduler.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_task_that_wakes_itself_goes_on_at_once_and_nobody_hears_of_it() {
        let (ready, polls, scheduler, _) = poll([Step::WakeItself, Step::Nothing, Step::Nothing]);
        assert_eq!((ready, polls, told(&scheduler)), (false, 2, 0));
        let (ready, polls, scheduler, _) = poll([Step::WakeItself, Step::Finish]);
        assert_eq!((ready, polls, told(&scheduler)), (true, 2, 0));
    }

    #[test]
    fn who_sleeps_is_woken_through_the_scheduler() {
        let (ready, polls, scheduler, waker) = poll([Step::Nothing]);
        assert_eq!((ready, polls, told(&scheduler)), (false, 1, 0));
        waker.wake();
        assert_eq!(told(&scheduler), 1);
    }

    #[test]
    fn who_wakes_itself_for_ever_lets_others_have_their_turn() {
        let (ready, polls, scheduler, _) = poll(std::iter::repeat_with(|| Step::WakeItself).take(100));
        assert_eq!((ready, polls, told(&scheduler)), (false, TURNS, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_from_another_thread_is_lost() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(1);
        let sum = tokio::spawn(OwnWakes::new(Box::pin(async move {
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
