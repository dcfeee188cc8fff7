output "repository_arn" {
  description = "The repository, for policies."
  value       = aws_ecr_repository.this.arn
}

output "repository_url" {
  description = "The repository, for pushing and pulling."
  value       = aws_ecr_repository.this.repository_url
}
