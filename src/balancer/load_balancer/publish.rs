//! Makes the next view from registrations, overrides and judgement.
//!
//! ```text
//! instances ──► drafts: live state, layers ──► ejections: cap, panic mode
//!                                               └──► members: share, bodies, state ──► View
//! ```
//!
//! Unchanged parts come from the view before. Everything happens under the lock of writers, beside
//! picks.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::LoadBalancer;
use super::writer::{Writer, heed};
use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::config::LoadBalancerConfig;
use crate::balancer::diff::{Changes, diff};
use crate::balancer::health::address::Tripped;
use crate::balancer::health::ejection::{AddressStatus, Ejections};
use crate::balancer::health::layers::Layers;
use crate::balancer::health::slow_start;
use crate::balancer::instance::{InstanceId, RegistryStatus, ServiceInstance, Weight};
use crate::balancer::live::{Live, address_key};
use crate::balancer::member::{Member, MemberState};
use crate::balancer::overrides::{Overrides, StandingOrder};
use crate::balancer::render::Described;
use crate::balancer::share::Factors;
use crate::balancer::view::{View, ViewParts};

impl LoadBalancer {
    /// Publishes a view of `all`, unless it equals the present view.
    pub(super) fn replace(&self, writer: &mut Writer, view: Arc<View>, mut all: Vec<Arc<ServiceInstance>>) -> Changes {
        // The sort is stable, so that of equal ids the last given stays last. `dedup_by` keeps the
        // first, hence the swap.
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all.dedup_by(|next, kept| {
            let same = next.id() == kept.id();
            if same {
                std::mem::swap(next, kept);
            }
            same
        });
        let changes = diff(view.members.iter().map(Member::instance), all.iter().map(Deref::deref));
        if !changes.is_empty() {
            let now = self.shared.environment.clock.now();
            writer.overrides.rename(renamed(&writer.overrides, &view, &all));
            writer.overrides.departed(&changes.removed, now, all.len());
            writer.overrides.arrived(&changes.added);
            let config = view.config.clone();
            self.publish(writer, view, config, all, &changes);
            self.shared.generation.fetch_add(1, Ordering::Release);
            self.wake();
            writer.tell_change();
        }
        changes
    }

    /// Publishes the same instances again, because something else about them changed.
    pub(super) fn republish(&self, writer: &mut Writer) {
        let view = self.shared.view.load_full();
        let instances = view.members.iter().map(|member| Arc::clone(&member.instance)).collect();
        let config = view.config.clone();
        self.publish(writer, view, config, instances, &Changes::default());
    }

    /// Prepares the next view and swaps it in. `instances` are sorted by id, each id once, and
    /// differ from the present instances by `changes`.
    pub(super) fn publish(
        &self,
        writer: &mut Writer,
        old: Arc<View>,
        config: LoadBalancerConfig,
        instances: Vec<Arc<ServiceInstance>>,
        changes: &Changes,
    ) {
        let now = self.shared.environment.clock.now();
        writer.overrides.expire(now);
        // An instance that joins a serving pool begins with a slow start.
        let may_join = !changes.added.is_empty() || !changes.updated.is_empty();
        let serves = may_join && old.usable > 0 && self.has_served(writer);
        if old.config.adapts() && (!config.adapts() || old.config.adaptive_formula() != config.adaptive_formula()) {
            writer.forget_adaptive();
        }
        let mut leaving = Vec::new();
        let mut previous = old.members.iter().peekable();
        let mut updated = changes.updated.iter().peekable();
        let mut last = None;
        let mut drafts: Vec<Draft<'_>> = instances
            .into_iter()
            .map(|instance| {
                while let Some(gone) = previous.next_if(|member| member.instance.id() < instance.id()) {
                    leaving.push(gone);
                }
                let before = previous.next_if(|member| member.instance.id() == instance.id());
                let live = match before {
                    Some(before) if before.instance.address() == instance.address() => Arc::clone(&before.live),
                    _ => {
                        leaving.extend(before);
                        let live = writer.arrive(instance.address(), now);
                        // The address may have left with an open breaker.
                        writer.upkeep.stir(&live);
                        if live.add_instance() && (serves || live.is_flapping(now)) {
                            live.start_ramp(now);
                        }
                        live
                    }
                };
                let orders = writer.overrides.of(instance.id());
                let said = layers(before, &instance, orders.drain, &old.config, &config, now);
                let order = orders.weight.as_ref().map(|order| order.weight);
                let judged = judged(&instance, said, order, &live, &config);
                let layers = judged.layers;
                live.reset_eligible();
                let other_status = |before: &Member| before.state.layers.registry.state != layers.registry.state;
                if before.is_some_and(other_status) {
                    writer.upkeep.registry_changed(&live, now);
                }
                if before.is_some_and(|before| recovered(before.state.layers.registry, layers.registry)) {
                    writer.upkeep.start_ramp(&live, now);
                }
                let state = MemberState {
                    layers,
                    weight: orders.weight,
                };
                let state = kept(state, before, &mut last);
                let alike = before.filter(|_| updated.next_if(|id| *id == instance.id()).is_none());
                Draft {
                    instance,
                    live,
                    state,
                    eligible: judged.eligible,
                    tripped: judged.tripped,
                    alike,
                }
            })
            .collect();
        leaving.extend(previous);
        let fail_open = config.fail_open() && fails_open(&mut drafts);
        writer.ejections = ejections(&drafts, &config);
        let members: Box<[Member]> = drafts
            .into_iter()
            .map(|draft| self.member(draft, &writer.ejections, &config, now))
            .collect();
        writer.depart_ids(&old.members, &members, now);
        writer.empty_since = match (members.is_empty(), writer.empty_since) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
        let count = members.len();
        let made = ViewParts {
            epoch: self.shared.epoch.load(Ordering::Relaxed),
            health: writer.ejections.pool(),
            fail_open,
            load: Arc::clone(&self.shared.load),
            turn: Arc::clone(&writer.turn),
            previous: Some(&old),
            sessions: &self.shared.sessions,
        };
        self.shared.sessions.switch(config.sticky_sessions());
        let view = View::new(config, members, made);
        writer.upkeep.panics(old.panic, writer.ejections.pool());
        writer
            .upkeep
            .fails_open(old.fail_open, fail_open, writer.ejections.pool());
        writer.upkeep.tier_in_turn(view.tier());
        writer.retired.push(self.shared.view.swap(Arc::new(view)));
        for member in leaving {
            writer.leave(member.instance.address(), now);
        }
        // The last reference besides those of picks, so that the view can be dropped at once.
        drop(old);
        writer.drop_retired(&self.shared.load);
        writer.forget(now, count);
        let took = self.shared.environment.clock.now().since(now);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.shared.build_time.store(nanos, Ordering::Relaxed);
        writer.upkeep.built(now, took);
        self.plan(writer, now);
    }

    /// A member of the next view. Its bodies come from the view before if attributes and status are
    /// the same.
    fn member(
        &self,
        draft: Draft<'_>,
        ejections: &Ejections<Arc<Live>>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> Member {
        let Draft {
            instance,
            live,
            mut state,
            eligible,
            alike,
            ..
        } = draft;
        let decision = ejections.of(address_key(&live));
        let was_held = state.layers.held_by_cap;
        if was_held != decision.held_by_cap {
            Arc::make_mut(&mut state).layers.held_by_cap = decision.held_by_cap;
        }
        heed(&live, decision, was_held);
        if eligible {
            live.count_eligible();
        }
        let MemberState { layers, weight } = &*state;
        let status = layers.status();
        let weight_override = weight.as_ref().map(|order| order.weight);
        let (adaptive, ramp) = (live.adaptive_factor(config), live.ramp(config, now));
        let factors = Factors::of(&instance, layers, weight_override, adaptive, ramp, config);
        let units = match (eligible, ejections.pool().panic) {
            (false, _) => 0,
            (true, true) => factors.units_in_panic(),
            (true, false) => factors.units(config),
        };
        let bodies = match alike {
            Some(alike) if alike.status == status => Arc::clone(&alike.bodies),
            _ => Arc::new(self.shared.environment.render.render(&Described {
                service: &self.shared.service,
                instance: &instance,
                status,
            })),
        };
        Member {
            tier: instance.tier(),
            instance,
            status,
            units,
            admission: decision.admission,
            bodies,
            live,
            state,
        }
    }
}

/// The ids with orders whose instance goes on under another id, with that other id.
fn renamed(overrides: &Overrides, old: &View, new: &[Arc<ServiceInstance>]) -> Vec<(InstanceId, InstanceId)> {
    let goes_on = |id: &InstanceId| {
        let before = old.member(id.as_str())?.instance();
        let is_same = |instance: &&Arc<ServiceInstance>| instance.is_same_machine(before);
        let keeps_id = new.binary_search_by(|instance| instance.id().cmp(id)).ok();
        if keeps_id
            .and_then(|place| new.get(place))
            .is_some_and(|kept| is_same(&kept))
        {
            return None;
        }
        let now = new.iter().find(is_same)?;
        Some((id.clone(), now.id().clone()))
    };
    overrides.ids().filter_map(goes_on).collect()
}

/// A member of the next view, before ejections are decided.
struct Draft<'a> {
    instance: Arc<ServiceInstance>,
    live: Arc<Live>,
    state: Arc<MemberState>,
    /// Only local judgement can take the instance out.
    eligible: bool,
    tripped: Option<Tripped>,
    /// The member of this id in the view before, if the instance has the same attributes.
    alike: Option<&'a Member>,
}

/// The state from the view before, or the `last` new one, if it is equal: most states are.
fn kept(state: MemberState, before: Option<&Member>, last: &mut Option<Arc<MemberState>>) -> Arc<MemberState> {
    match (before.map(|before| &before.state), last.as_ref()) {
        (Some(before), _) if **before == state => Arc::clone(before),
        (_, Some(last)) if **last == state => Arc::clone(last),
        _ => Arc::clone(last.insert(Arc::new(state))),
    }
}

/// Makes the critical instances of a pool without eligible instances eligible. Returns whether there
/// are any. Local judgement applies to them as to others.
fn fails_open(drafts: &mut [Draft<'_>]) -> bool {
    if drafts.iter().any(|draft| draft.eligible) {
        return false;
    }
    for draft in &mut *drafts {
        let order = draft.state.weight.as_ref().map(|order| order.weight);
        let has_weight = order.unwrap_or(draft.instance.weight()).get() > 0;
        draft.eligible = has_weight && draft.state.layers.is_only_critical();
    }
    drafts.iter().any(|draft| draft.eligible)
}

/// Decides about the pool of these drafts.
fn ejections(drafts: &[Draft<'_>], config: &LoadBalancerConfig) -> Ejections<Arc<Live>> {
    let eligible = drafts.iter().filter(|draft| draft.eligible).count();
    let mut unhealthy: HashMap<usize, (Arc<Live>, AddressStatus)> = HashMap::new();
    for draft in drafts {
        let down = draft.state.layers.is_down();
        if down || draft.tripped.is_some() {
            let status = || AddressStatus {
                instances: 0,
                down,
                tripped: draft.tripped,
            };
            let entry = unhealthy.entry(address_key(&draft.live));
            let (_, status) = entry.or_insert_with(|| (Arc::clone(&draft.live), status()));
            status.instances += usize::from(draft.eligible);
        }
    }
    let unhealthy = unhealthy.into_iter().map(|(key, (live, status))| (key, live, status));
    Ejections::decide(eligible, unhealthy, config)
}

/// The judgement of one instance. One read of its address, so that all of it belongs to one moment.
struct Judged {
    layers: Layers,
    eligible: bool,
    tripped: Option<Tripped>,
}

/// Adds local judgement to the layers of admin and registry.
fn judged(
    instance: &ServiceInstance,
    said: Layers,
    order: Option<Weight>,
    live: &Live,
    config: &LoadBalancerConfig,
) -> Judged {
    let (layers, tripped) = match live.health() {
        Some(health) => (health.add_to(said), health.tripped()),
        None => (said, None),
    };
    Judged {
        eligible: is_eligible(instance, &layers, order, config),
        layers,
        tripped,
    }
}

/// Whether only local judgement can take the instance out. An instance with a registry warning
/// weight of 0 is not eligible.
fn is_eligible(
    instance: &ServiceInstance,
    layers: &Layers,
    order: Option<Weight>,
    config: &LoadBalancerConfig,
) -> bool {
    let warns = layers.registry.state == RegistryStatus::Warning;
    order.unwrap_or(instance.weight()).get() > 0
        && layers.is_eligible()
        && !(warns && Factors::of(instance, layers, order, 1.0, slow_start::STEPS, config).units(config) == 0)
}

/// The layers of admin and registry. Judgement is added afterwards.
fn layers(
    before: Option<&Member>,
    instance: &ServiceInstance,
    drain: Option<Arc<StandingOrder>>,
    old_config: &LoadBalancerConfig,
    config: &LoadBalancerConfig,
    now: Timestamp,
) -> Layers {
    // Parsing the address costs more than all the rest.
    let known = before
        .filter(|before| before.instance.address() == instance.address() && old_config.denied() == config.denied());
    let refused = match known {
        Some(before) => before.state.layers.address_refused,
        None => instance.address().ip().is_some_and(|ip| config.denied().contains(ip)),
    };
    let layers = before.map(|before| &before.state.layers);
    Layers::from_registry(layers, drain, instance.registry_status(), refused, now)
}

/// Whether the registry rejected the instance before, and does not reject it now.
fn recovered(before: Since<RegistryStatus>, now: Since<RegistryStatus>) -> bool {
    let rejects = |status| matches!(status, RegistryStatus::Critical | RegistryStatus::Maintenance);
    rejects(before.state) && !rejects(now.state)
}
