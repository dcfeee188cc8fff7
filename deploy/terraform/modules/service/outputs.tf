output "address" {
  description = "The load balancer's name."
  value       = aws_lb.this.dns_name
}

output "log_group_arn" {
  description = "The log, for policies."
  value       = aws_cloudwatch_log_group.this.arn
}

output "service_arn" {
  description = "The service, for policies."
  value       = aws_ecs_service.this.id
}
