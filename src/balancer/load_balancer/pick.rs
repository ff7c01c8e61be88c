//! Picks, their alternates, and requests in flight.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::Guard;

use super::LoadBalancer;
use crate::balancer::config::LoadBalancerConfig;
use crate::balancer::context::Context;
use crate::balancer::error::PickError;
use crate::balancer::instance::{HealthStatus, ServiceInstance};
use crate::balancer::live::Live;
use crate::balancer::member::Member;
use crate::balancer::outcome::Outcome;
use crate::balancer::render::Bodies;
use crate::balancer::session_token::SessionToken;
use crate::balancer::view::View;

impl LoadBalancer {
    /// Chooses the instance that should take the next request, and counts the pick.
    ///
    /// ```
    /// use pickd::{Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance};
    ///
    /// let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash);
    /// let balancer = LoadBalancer::new("session-service".parse()?, config);
    /// for (id, host) in [("cache-1", "10.0.1.20"), ("cache-2", "10.0.1.21"), ("cache-3", "10.0.1.22")] {
    ///     balancer.add_instance(ServiceInstance::new(id, host, 6379)?);
    /// }
    /// let user = Context::new().with_key("user-7");
    /// let id = balancer.select_instance(&user)?.id().clone();
    /// for _ in 0..10 {
    ///     assert_eq!(balancer.select_instance(&user)?.id(), &id);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A pick loads the view once, takes no lock and allocates nothing. Do not hold the [`Pick`]
    /// over an await: it pins its view.
    ///
    /// # Errors
    ///
    /// [`PickError::Empty`] without instances, [`PickError::UnknownPort`] when the context asks for
    /// a port that no instance has, [`PickError::NoneAvailable`] when no instance can be picked.
    #[inline]
    pub fn select_instance(&self, context: &Context<'_>) -> Result<Pick, PickError> {
        let view = self.shared.view.load();
        match view.choose(context, &self.shared.load, self.shared.epoch.load(Ordering::Acquire)) {
            Some(member) => {
                view.picks.increment(member);
                Ok(Pick {
                    view,
                    member: member as usize,
                })
            }
            None => Err(self.refusal(&view, context)),
        }
    }

    #[cold]
    fn refusal(&self, view: &View, context: &Context<'_>) -> PickError {
        let (service, total) = (self.shared.service.clone(), view.members.len());
        let has = |port| {
            view.members
                .iter()
                .any(|member| member.instance.named_port(port).is_some())
        };
        match (total, context.port()) {
            (0, _) => PickError::Empty { service },
            (_, Some(port)) if !has(port) => PickError::UnknownPort {
                service,
                port: port.chars().take(64).collect(),
                total,
            },
            _ => PickError::NoneAvailable { service, total },
        }
    }

    /// Chooses as [`select_instance`](Self::select_instance) does, and counts the request as in
    /// flight until it is [finished](Acquired::finish) or dropped.
    ///
    /// # Errors
    ///
    /// As for `select_instance`.
    pub fn acquire(&self, context: &Context<'_>) -> Result<Acquired, PickError> {
        self.catch_up();
        self.select_instance(context).map(|pick| self.begin(&pick))
    }

    /// Counts the request of a pick as in flight.
    pub(crate) fn begin(&self, pick: &Pick) -> Acquired {
        let member = &pick.view.members[pick.member];
        let (instance, live) = (Arc::clone(&member.instance), Arc::clone(&member.live));
        live.begin();
        self.shared.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Acquired {
            instance,
            live,
            balancer: self.clone(),
        }
    }
}

/// The answer to one pick: an instance, as it is in the view of the pick.
pub struct Pick {
    view: Guard<Arc<View>>,
    member: usize,
}

impl Pick {
    /// The configuration of the view.
    pub(crate) fn config(&self) -> &LoadBalancerConfig {
        &self.view.config
    }

    /// The instance. (Dereferencing gives the same.)
    #[must_use]
    #[inline]
    pub fn instance(&self) -> &ServiceInstance {
        &self.view.members[self.member].instance
    }

    /// The derived status of the instance.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.view.members[self.member].status
    }

    /// The rendered bodies of the instance.
    #[must_use]
    #[inline]
    pub fn bodies(&self) -> &Bodies {
        &self.view.members[self.member].bodies
    }

    /// Whether the pool is in panic mode: too few instances are usable, so all eligible instances
    /// are candidates.
    #[must_use]
    #[inline]
    pub fn panic(&self) -> bool {
        self.view.panic
    }

    /// Whether the service fails open: the registry calls every instance critical, and the critical
    /// instances are candidates all the same.
    #[must_use]
    #[inline]
    pub fn fails_open(&self) -> bool {
        self.view.fail_open
    }

    /// The token of the caller's session, for [`Context::with_session`] of later picks, here or at
    /// another agent with the same [`SessionKey`](crate::balancer::SessionKey). `None` without
    /// [`sticky_sessions`](LoadBalancerConfig::sticky_sessions). `context` is the context of the pick.
    ///
    /// The token names the instance of the session: also where the caller excluded that instance for
    /// this one pick. A caller that gave neither key nor token gets a new session.
    #[must_use]
    pub fn session(&self, context: &Context<'_>) -> Option<SessionToken> {
        self.view.session(context, &self.view.members[self.member])
    }

    /// Up to `count` other instances to try in turn if this one fails: tier by tier, in ring order
    /// for a hashed key, else drawn by weight. All differ from each other and fit `context`, which is the
    /// context of the pick. The call counts no pick and advances no turn.
    #[must_use]
    pub fn alternates(&self, count: usize, context: &Context<'_>) -> Vec<Alternate<'_>> {
        let members = self.view.alternates(self.member as u32, count, context);
        let alternate = |member: u32| {
            self.view
                .members
                .get(member as usize)
                .map(|member| Alternate { member })
        };
        members.into_iter().filter_map(alternate).collect()
    }
}

impl Deref for Pick {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        self.instance()
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pick").field(self.instance()).finish()
    }
}

/// Another instance to try.
#[derive(Clone, Copy, Debug)]
pub struct Alternate<'a> {
    member: &'a Member,
}

impl<'a> Alternate<'a> {
    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &'a ServiceInstance {
        &self.member.instance
    }

    /// The derived status of the instance.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.member.status
    }

    /// The rendered bodies of the instance.
    #[must_use]
    pub fn bodies(&self) -> &'a Bodies {
        &self.member.bodies
    }
}

/// A request in flight. Dropping it ends the request as cancelled.
///
/// The request knows its balancer. So it cannot be finished on another one:
///
/// ```compile_fail,E0599
/// # use std::time::Duration;
/// # use pickd::{Context, LoadBalancer, LoadBalancerConfig, Outcome, ServiceInstance};
/// # let [a, b] = ["a", "b"].map(|name| LoadBalancer::new(name.parse().unwrap(), LoadBalancerConfig::default()));
/// # a.add_instance(ServiceInstance::new("a-1", "10.0.1.10", 80).unwrap());
/// let acquired = a.acquire(&Context::new()).unwrap();
/// b.finish(acquired, Outcome::Failure, Duration::ZERO); // a balancer has no `finish`
/// ```
#[derive(Debug)]
pub struct Acquired {
    instance: Arc<ServiceInstance>,
    live: Arc<Live>,
    balancer: LoadBalancer,
}

impl Acquired {
    /// Ends the request. The balancer learns from the outcome. `latency` runs from the pick to the
    /// answer.
    pub fn finish(self, outcome: Outcome, latency: Duration) {
        self.balancer.learn(&self.live, outcome, Some(latency));
    }

    /// The instance. (Dereferencing gives the same.)
    #[must_use]
    pub fn instance(&self) -> &Arc<ServiceInstance> {
        &self.instance
    }

    pub(crate) fn balancer(&self) -> &LoadBalancer {
        &self.balancer
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Deref for Acquired {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        &self.instance
    }
}

impl Drop for Acquired {
    fn drop(&mut self) {
        self.live.end();
        self.balancer.shared.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
