"""The global router: HTTP gateway, fleet view, policy and request pipeline."""
